"""Data loaders whose order and augmentation depend only on the seed, the epoch and the image."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fbnetv3.data.batches.batch import Batch, Sample, collate_samples
from fbnetv3.data.corrupt_images import CorruptImageError
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.samplers import DistributedSequentialSampler, EpochSampler, Order
from fbnetv3.data.transforms import Preprocessing, Transform
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.random_state import derive_seed, seeded_torch
from fbnetv3.utils.text import describe_error

TargetFunction = Callable[[int, int, int], Tensor]
"""Maps the view, index and class index of an image to its target."""


@dataclass(eq=False)
class TransformedDataset(Dataset):
    """A dataset and a transform whose randomness depends only on seed, epoch and index.

    It is indexed by the keys that the samplers yield: epoch, index and, for an image that was already drawn in this
    epoch, how often.
    """

    dataset: ImageDataset
    transform: Transform
    seed: int = 0
    views: int = 0  # see `build_loader`
    target: TargetFunction | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Sample:
        epoch, index, *repeats = key
        # The same view of the same image gets the same augmentation
        view = epoch % self.views if self.views else epoch
        repeats = [] if self.views else repeats
        try:
            image, class_index = self.dataset[index]
            with seeded_torch(derive_seed(self.seed, view, index, *repeats)):
                pixels = self.transform(image)
            target = self.target(view, index, class_index) if self.target else class_index
        # The main process decides whether too many images have failed; an exception here would end the worker
        except Exception as error:
            return Sample(None, None, index, self._describe(error, index))
        return Sample(pixels, target, index)

    def _describe(self, error: Exception, index: int) -> str:
        """Return a message about an image that could not be read, with its name."""
        name = self.dataset.image_name(index)
        if isinstance(error, CorruptImageError) and name in str(error):
            return str(error)
        # Other errors in data are those of the target
        message = (
            str(error) if isinstance(error, DataError) else f"cannot be read ({describe_error(error, 120)})"
        )
        return f"{name}: {message}"


def init_worker(_: int) -> None:
    """Initialize a DataLoader's worker process: let only the main process end it, hide tracebacks, use one thread."""
    # Ctrl-C and a scheduler's SIGTERM reach all processes; the main process handles them and ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of_main_process, daemon=True).start()
    else:  # macOS and Windows cannot tell who sent it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Errors about images are passed to the main process. All that is left are tracebacks about tensors that an
    # interrupted main process no longer receives.
    sys.excepthook = lambda *error: None
    torch.set_num_threads(1)


def _exit_on_sigterm_of_main_process() -> None:
    # multiprocessing sends it when the interpreter exits while the loader exists, and waits for the worker to end
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class SignalSafeLoader(DataLoader):
    """A DataLoader whose workers start with SIGTERM blocked, which could end them before `init_worker` handles it."""

    def __iter__(self) -> Any:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class BatchLoader(SignalSafeLoader):
    """A loader of `Batch`es, which get the names of the dataset's images in this process."""

    dataset: TransformedDataset

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return map(self._name_images, super().__iter__())

    def read_first(self, count: int) -> Batch:
        """Return the first images of the next epoch, read in this process; the batches stay the same."""
        keys = itertools.islice(iter(self.sampler), count)
        return self._name_images(self.collate_fn([self.dataset[key] for key in keys]))

    def _name_images(self, batch: Batch) -> Batch:
        batch.image_name = self.dataset.dataset.image_name
        return batch


def build_loader(
    dataset: ImageDataset,
    transform: Transform,
    *,
    batch_size: int,
    training: bool,
    workers: int = 0,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    views: int = 0,
    target: TargetFunction | None = None,
    pin_memory: bool = False,
    order: Order | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """Build a loader of `Batch`es. In training it shuffles, and drops an incomplete last batch.

    Set `loader.sampler.epoch` before each epoch of training.

    Args:
        dataset: the images.
        transform: function from an image to a tensor: float32, or uint8 together with `preprocessing`.
        batch_size: images per batch: over all processes in training, of each process in evaluation.
        training: whether to shuffle, and drop an incomplete last batch.
        workers: number of worker processes. They are kept from epoch to epoch, as long as the loader.
        seed: seed of order and augmentation.
        preprocessing: preprocessing with which `Batch.to` normalizes uint8 images.
        views: number of fixed augmentations per image, used in turn; 0 for a new one in every epoch.
        target: function that returns an image's target; default: the class index.
        pin_memory: whether to use pinned memory, for copies to a GPU.
        order: function that draws the order of an epoch of training; default: the dataset's own, or a random one.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        UsageError: in training, the processes cannot share the batch, or get fewer than two images.
        DataError: the dataset is smaller than one training batch.
    """
    length = len(dataset)
    if training:
        # BatchNorm needs two values per channel even for 1x1 maps
        if batch_size < 2 * world_size or batch_size % world_size:
            multiple = f" and a multiple of {world_size}, the number of processes" if world_size > 1 else ""
            raise UsageError(f"SOLVER.BATCH_SIZE {batch_size} must be at least {2 * world_size}{multiple}")
        if length < batch_size:
            raise DataError(
                f"SOLVER.BATCH_SIZE {batch_size} must be at most {length}, the number of training images"
            )
        order = order or getattr(dataset, "order", None)  # see `ImageDataset`
        sampler: Sampler = EpochSampler(length, batch_size, seed, rank, world_size, order)
    else:
        sampler = DistributedSequentialSampler(length, rank, world_size)
    return BatchLoader(
        TransformedDataset(dataset, transform, seed, views, target),
        batch_size=batch_size // world_size if training else batch_size,
        sampler=sampler,
        num_workers=workers,
        # Workers get the epoch with each index
        persistent_workers=workers > 0,
        collate_fn=partial(collate_samples, preprocessing),
        drop_last=training,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        # By default each epoch draws from the global generator
        generator=torch.Generator().manual_seed(seed),
    )


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return torch's memory format for images."""
    return torch.channels_last if channels_last else torch.contiguous_format
