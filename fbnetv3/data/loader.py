"""Batches from a dataset: which images when, augmented how, is a function of the seed, the epoch and the image."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.image_io import CorruptImageError
from fbnetv3.data.transforms import Preprocessing, Transform, normalized
from fbnetv3.errors import DataError, UsageError

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A part of a dataset.

    Attributes:
        images: (N, C, H, W), float32, or uint8 that is still to be normalised.
        targets: class indices (N,), or shares of the classes (N, classes).
        names: what the images are called.
        damaged: what could not be read, and why.
        mean, std: of the channels, in [0, 1], where the images are uint8.
        numbers: where the images stand in the dataset.
    """

    images: Tensor
    targets: Tensor
    names: list[str]
    damaged: list[str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    numbers: list[int] = []

    def on(self, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
        """Images, normalised, and targets on a device. Bytes travel, not floats."""
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalized(images, self.mean, self.std)
        images = images.contiguous(memory_format=memory_format)
        return images, self.targets.to(device, non_blocking=True)


class EpochSampler(Sampler):
    """Yields (epoch, index) for every image once, in batches of an order of its own for each seed and epoch.

    Where several processes train together, the batches are the same as for one, and each gets its part of every one.

    Args:
        length: number of images.
        batch_size: images a batch, over all processes.
        seed: seed of the order.
        rank, world_size: number of this process, and how many there are.
        order: draws an order of all images; default: any is as likely as any other.

    Attributes:
        epoch: set it before each epoch.
        start: batches to leave out at the epoch's beginning, for a run that goes on in the middle of one.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        self.order = order or (lambda generator: torch.randperm(length, generator=generator))
        self.batches, self.length, self.batch_size = length // batch_size, length, batch_size
        self.seed, self.rank, self.part = seed, rank, batch_size // world_size
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches * self.part

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = self.order(generator)[: self.batches * self.batch_size]
        mine = order.view(self.batches, -1, self.part)[self.start :, self.rank].flatten().tolist()
        return ((self.epoch, index) for index in mine)


class PartSampler(Sampler):
    """Yields (epoch, index) in the dataset's own order; of several processes, each gets other images, and all get all.

    Attributes:
        epoch: matters to a transform with randomness alone.
        start: images to leave out at the beginning.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.indices[self.start :])


class Transformed(Dataset):
    """A dataset behind a transform whose randomness depends on seed, epoch and image alone.

    An item is (tensor, target, name, index, None), or (None, None, name, index, message) for a damaged image.

    Args:
        dataset: the images.
        transform: from an image to a tensor.
        seed: of the randomness.
        views: in how many ways an image comes, one after the other, epoch by epoch; 0 for a new one each time.
        target: makes the target from the view, the index and the class; default: the class itself.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        seed: int = 0,
        views: int = 0,
        target: Callable[[int, int, int], Tensor] | None = None,
    ) -> None:
        self.dataset, self.transform, self.seed, self.views, self.target = dataset, transform, seed, views, target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        epoch, index = key
        view = epoch % self.views if self.views else epoch
        name = self.dataset.image_name(index)
        try:
            image, target = self.dataset[index]
            with _seeded(mix_seeds(self.seed, view, index)):
                pixels = self.transform(image)
            return pixels, self.target(view, index, target) if self.target else target, name, index, None
        except CorruptImageError as error:
            return None, None, name, index, str(error)
        except Exception as error:  # whatever one image does to a decoder or a transform, it must not end the run
            reason = " ".join(str(error).split())[:120]
            return None, None, name, index, f"{name}: cannot be read ({type(error).__name__}: {reason})"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's CPU randomness from a seed of its own. (`torch.manual_seed` would cost half a millisecond a time.)"""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def mix_seeds(*numbers: int) -> int:
    """One seed out of several numbers."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 29
    return mixed


def _collate(mean: tuple[float, ...], std: tuple[float, ...], items: list[tuple]) -> Batch:
    good = [item for item in items if item[-1] is None]
    images = torch.stack([image for image, *_ in good]) if good else torch.empty(0)
    targets = [target for _, target, *_ in good]
    soft = bool(targets) and isinstance(targets[0], Tensor)
    names, numbers = [item[2] for item in good], [item[3] for item in good]
    damaged = [damage for *_, damage in items if damage is not None]
    together = torch.stack(targets) if soft else torch.tensor(targets, dtype=torch.long)
    return Batch(images, together, names, damaged, mean, std, numbers)


def init_worker(_: int) -> None:
    """For a DataLoader's processes: deaf to signals, silent about what the main process hears of, of one thread."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process's affair: it ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    # What goes wrong with an image travels to the main process; the hook would only hear of tensors that a main
    # process interrupted meanwhile no longer takes.
    sys.excepthook = lambda *error: None
    torch.set_num_threads(1)


def build_loader(
    dataset: ImageDataset,
    transform: Transform,
    *,
    batch_size: int,
    training: bool,
    workers: int = 0,
    seed: int = 0,
    normalize: Preprocessing | None = None,
    views: int = 0,
    target: Callable[[int, int, int], Tensor] | None = None,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Batches of a dataset. In training they are shuffled and the last, incomplete one is left out.

    Set `loader.sampler.epoch` before each epoch of training.

    Args:
        dataset: the images.
        transform: from an image to a tensor, float32, or uint8 with `normalize`.
        batch_size: images a batch; in training over all processes, in evaluation of each.
        training: whether to shuffle.
        workers: processes that read.
        seed: of order and augmentation.
        normalize: normalise uint8 images, as these do, once they lie where they are needed.
        views, target: as for `Transformed`.
        pin_memory: for copies to a GPU.
        rank, world_size: number of this process, and how many train together.

    Raises:
        UsageError: less than two images of a batch for each process, which BatchNorm cannot learn from, or a batch
            that the processes cannot share.
        DataError: fewer images than one batch of training.
    """
    if training and batch_size < 2 * world_size:
        shared = f" over {world_size} processes" if world_size > 1 else ""
        raise UsageError(f"SOLVER.BATCH_SIZE {batch_size}{shared} cannot train a network with BatchNorm")
    if training and batch_size % world_size:
        raise UsageError(f"SOLVER.BATCH_SIZE {batch_size} is no multiple of the {world_size} processes")
    if training and len(dataset) < batch_size:
        raise DataError(f"{len(dataset)} training images are less than one batch of {batch_size} (SOLVER.BATCH_SIZE)")
    if training:
        order = getattr(dataset, "order", None)  # a dataset may know one in which it is faster to read
        sampler: Sampler = EpochSampler(len(dataset), batch_size, seed, rank, world_size, order)
    else:
        sampler = PartSampler(len(dataset), rank, world_size)
    return DataLoader(
        Transformed(dataset, transform, seed, views, target),
        batch_size=batch_size // world_size if training else batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=training and workers > 0,  # they get the epoch with each image's index
        collate_fn=partial(_collate, normalize.mean if normalize else (), normalize.std if normalize else ()),
        drop_last=training,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        generator=torch.Generator().manual_seed(seed),  # else each epoch would draw from training's randomness
    )


class DamageCounter:
    """Counts damaged images, each once, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.found: dict[str, None] = {}

    def add(self, damaged: list[str]) -> None:
        """Note what a batch could not read.

        Raises:
            DataError: more than the limit; the text names the images.
        """
        for message in damaged:
            if message not in self.found:
                self.found[message] = None
                if len(self.found) <= self.limit:
                    logger.warning("left out: %s", message)
        if len(self.found) > self.limit:
            names = list(self.found)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DataError(
                f"{'; '.join(names[:3])}{more}: mend or remove, or let a run skip some with DATA.MAX_CORRUPT"
            )
