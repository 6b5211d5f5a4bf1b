"""A batch of images with their targets, on the host or on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data.transforms import Preprocessing


def _number_image(index: int) -> str:
    return f"image {index}"


@dataclass(eq=False)
class Batch:
    """A batch of images with their targets.

    Only tensors and one array are copied from process to process and into pinned memory: names are looked up when a
    message needs them.
    """

    images: Tensor  # float32 (N, C, H, W), or uint8 that `to` normalizes
    targets: Tensor  # class indices (N,), or probabilities (N, classes)
    indices: Sequence[int] | np.ndarray  # of the images in the dataset
    errors: list[str] = field(
        default_factory=list
    )  # about images that could not be read; the batch lacks them
    preprocessing: Preprocessing | None = None  # normalizes uint8
    image_name: Callable[[int], str] = (
        _number_image  # name of an image by its index; loaders set the dataset's
    )

    @property
    def names(self) -> list[str]:
        """The names of the images, for messages."""
        return [self.image_name(int(index)) for index in self.indices]

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in pinned memory; DataLoader's pinning thread calls this."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())

    def copy_to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device; from pinned memory, the host does not wait for the copy."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, targets=self.targets.to(device, non_blocking=True))

    def to(self, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
        """Copy images and targets to a device and normalize there, so that bytes are copied rather than floats."""
        batch = self.copy_to(device)
        images = batch.images
        if images.dtype == torch.uint8:  # float images were normalized by the transform
            assert self.preprocessing is not None
            images = self.preprocessing.normalize(images)
        return images.contiguous(memory_format=memory_format), batch.targets

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: tensors on the host, and of the dataset only these images' names."""
        state = {**self.__dict__, "images": self.images.cpu(), "targets": self.targets.cpu()}
        if self.image_name is not _number_image:
            indices = [int(index) for index in self.indices]
            state["image_name"] = dict(zip(indices, self.names, strict=True)).__getitem__
        return state


class Sample(NamedTuple):
    """One transformed image; pixels and target are None if it is corrupt."""

    pixels: Tensor | None
    target: int | Tensor | None
    image_index: int
    error: str | None = None


def collate_samples(preprocessing: Preprocessing | None, samples: list[Sample]) -> Batch:
    """Return the batch of those samples that could be read, and the errors of the others."""
    readable = [sample for sample in samples if sample.error is None]
    pixels = [sample.pixels for sample in readable if sample.pixels is not None]
    # Targets are probabilities of the classes, such as a teacher's, or class indices
    soft_targets = [sample.target for sample in readable if isinstance(sample.target, Tensor)]
    if soft_targets:
        targets = torch.stack(soft_targets)
    else:
        targets = torch.tensor([sample.target for sample in readable], dtype=torch.long)
    return Batch(
        torch.stack(pixels) if pixels else torch.empty(0),
        targets,
        indices=np.array([sample.image_index for sample in readable], dtype=np.int64),
        errors=[sample.error for sample in samples if sample.error is not None],
        preprocessing=preprocessing,
    )
