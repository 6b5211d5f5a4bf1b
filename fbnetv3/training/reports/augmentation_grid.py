"""A picture of training images as the network sees them: cropped, augmented and mixed, with their class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fbnetv3.data import Batch, Preprocessing
from fbnetv3.training.reports.image_grid import draw_image_grid, to_pixels
from fbnetv3.training.trainer import Mixup
from fbnetv3.utils.text import shorten

MAX_IMAGES = 24
_CAPTION_LIMIT = 22
_MAX_LINES = 2
_MIN_SHARE = 0.01  # smaller shares of a class in a mixed target, such as smoothed labels', are not shown


def draw_augmented_images(
    batch: Batch, preprocessing: Preprocessing, classes: Sequence[str], mixup: Mixup | None = None
) -> Any:
    """Draw a batch of training images after all augmentation, with the shares of their classes if they are mixed."""
    images, targets = batch.to(torch.device("cpu"), torch.contiguous_format)
    # At its own random numbers, so that the run's are the same without this picture
    if mixup is not None and len(images) > 1:
        with torch.random.fork_rng(devices=[]):
            images, targets = mixup(images, targets)
    pixels = denormalize(images, preprocessing)
    captions = [_describe_target(target, classes) for target in targets]
    lines = max(map(len, captions), default=0)
    padded = [caption + [""] * (lines - len(caption)) for caption in captions]
    return draw_image_grid(
        [to_pixels(image) for image in pixels], padded, title="training images, augmented"
    )


def denormalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Invert the normalization: float32 (N, channels, H, W) to uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _describe_target(target: Tensor, classes: Sequence[str]) -> list[str]:
    """Return a line per class of a class index, or of shares (classes,): the two largest, and the number of others."""
    if target.ndim == 0:
        return [shorten(classes[int(target)], _CAPTION_LIMIT)]
    lines = []
    for index in target.argsort(descending=True, stable=True)[: int((target >= _MIN_SHARE).sum())].tolist():
        share = f"{100 * float(target[index]):.0f}% "
        # Labels that are not mixed have no share
        lines.append(shorten(f"{'' if share == '100% ' else share}{classes[index]}", _CAPTION_LIMIT))
    return (
        lines if len(lines) <= _MAX_LINES else [*lines[:_MAX_LINES], f"and {len(lines) - _MAX_LINES} more"]
    )
