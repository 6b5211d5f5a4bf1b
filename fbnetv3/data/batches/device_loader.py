"""A loader that keeps a small dataset in the device's memory and augments it there (DATA.ON_DEVICE)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from fbnetv3.data.batches.batch import Batch
from fbnetv3.data.batches.batch_augmentation import BatchAugmentation, crop_and_flip
from fbnetv3.data.loader import BatchLoader, init_worker
from fbnetv3.data.samplers import DistributedSequentialSampler
from fbnetv3.data.transforms import Preprocessing

logger = logging.getLogger(__name__)

_READ_BATCH = 256


@dataclass(frozen=True)
class DeviceImages:
    """All images of a dataset on a device."""

    padded: Tensor  # uint8 (images, height, width, channels)
    targets: Tensor  # class indices (images,), or 1 for each label (images, classes)
    errors: dict[int, str]  # messages by index; the pixels of these images are black


class DeviceLoader(BatchLoader):
    """A loader of the same batches as another one, except that a device's memory holds the images and augments them.

    The first epoch begins by reading all images. How an image is augmented depends only on seed, epoch and image.

    Args:
        loader: loader of images without any augmentation; its workers read them.
        preprocessing: preprocessing of the images, whose side is its resolution.
        device: device that keeps them.
        augmentation: augmentation of the images; default: none.
    """

    def __init__(
        self,
        loader: BatchLoader,
        preprocessing: Preprocessing,
        device: torch.device,
        augmentation: BatchAugmentation | None = None,
    ) -> None:
        super().__init__(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
        )
        self.preprocessing = preprocessing
        self.device = device
        self.augmentation = augmentation or BatchAugmentation()
        self._read_workers = loader.num_workers
        self._images: DeviceImages | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self._images is None:
            self._images = self._read_images()
        keys = list(self.sampler)
        indices = torch.tensor([key[1] for key in keys], dtype=torch.long)
        repeats = torch.tensor([key[2] if len(key) > 2 else 0 for key in keys], dtype=torch.long)
        epoch = keys[0][0] if keys else 0
        # Copied once an epoch, so that no batch waits for a copy
        plan = torch.cat([indices[None], self.augmentation.draw(epoch, indices, repeats)]).to(self.device)
        size = cast("int", self.batch_size)
        for batch_indices, batch_plan in zip(indices.split(size), plan.split(size, 1), strict=True):
            yield self._build_batch(self._images, batch_indices, batch_plan)

    def read_first(self, count: int) -> Batch:
        """Return the first images of the next epoch."""
        batch = next(iter(self))
        return replace(
            batch, images=batch.images[:count], targets=batch.targets[:count], indices=batch.indices[:count]
        )

    def _build_batch(self, images: DeviceImages, indices: Tensor, plan: Tensor) -> Batch:
        """Return the batch of some images; `plan` has their indices and parameters on the device, (4, N)."""
        errors = [images.errors[i] for i in indices.tolist() if i in images.errors]
        if errors:
            readable = torch.tensor([i not in images.errors for i in indices.tolist()])
            indices, plan = indices[readable], plan[:, readable.to(self.device)]
        return Batch(
            crop_and_flip(images.padded, plan[0], plan[1:], self.preprocessing.resolution),
            images.targets[plan[0]],
            indices.numpy(),
            errors,
            self.preprocessing,
            self.dataset.dataset.image_name,
        )

    def _read_images(self) -> DeviceImages:
        """Read all images, pad them with black, and copy them to the device."""
        length, side, padding = len(self.dataset), self.preprocessing.resolution, self.augmentation.padding
        padded_side = side + 2 * padding
        padded = torch.zeros(
            length, padded_side, padded_side, self.preprocessing.channels, dtype=torch.uint8
        )
        targets = torch.zeros(length, dtype=torch.long)
        errors: dict[int, str] = {}
        inner = padded[:, padding : padding + side, padding : padding + side]
        reader = BatchLoader(
            self.dataset,
            batch_size=_READ_BATCH,
            sampler=DistributedSequentialSampler(length),
            num_workers=self._read_workers,
            collate_fn=self.collate_fn,
            worker_init_fn=init_worker,
        )
        for number, batch in enumerate(reader):
            # Of the images that are missing in the batch, the errors are in the same order
            start = number * _READ_BATCH
            expected = range(start, min(start + _READ_BATCH, length))
            present = {int(index) for index in batch.indices}
            missing = [index for index in expected if index not in present]
            errors |= dict(zip(missing, batch.errors, strict=True))
            if len(batch.targets):
                if batch.targets.ndim == 2 and targets.ndim == 1:  # images have several labels
                    targets = torch.zeros(length, batch.targets.shape[1])
                inner[batch.indices] = batch.images.permute(0, 2, 3, 1)
                targets[batch.indices] = batch.targets
        logger.info("%d images are kept on %s: %.0f MB", length, self.device, padded.nbytes / 1e6)
        return DeviceImages(padded.to(self.device), targets.to(self.device), errors)
