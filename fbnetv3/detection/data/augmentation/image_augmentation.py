"""Augmentation of one image: resizing and crops that accept any image, and colors in either channel order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from torchvision.transforms import v2


class SafeResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's transform, but each side keeps at least one pixel, however extreme the aspect ratio."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for an image (height, width, channels)."""
        return _keep_a_pixel(super().get_transform(image))


class SafeResizeScale(T.ResizeScale):
    """detectron2's transform, but each side keeps at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for an image (height, width, channels)."""
        return _keep_a_pixel(super().get_transform(image))


class SafeRandomCrop(T.RandomCrop):
    """detectron2's transform, but each side keeps at least one pixel."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the crop, in pixels."""
        height, width = super().get_crop_size(image_size)
        return max(1, height), max(1, width)


def _keep_a_pixel(transform: T.Transform) -> T.Transform:
    if isinstance(transform, T.ResizeTransform):
        transform.new_h = max(1, transform.new_h)
        transform.new_w = max(1, transform.new_w)
    return transform


class ColorAugmentation(T.Augmentation):
    """Applies a random change of colors that expects RGB to images of either channel order.

    Args:
        change: maps uint8 (3, height, width) in RGB to the same. Its random numbers are torch's or NumPy's.
        format: `INPUT.FORMAT`, "BGR" or "RGB".
    """

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], format: str) -> None:
        super().__init__()
        self.change = change
        self.format = format

    def __repr__(self) -> str:
        return f"ColorAugmentation({self.change!r}, {self.format})"

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for an image (height, width, 3)."""
        return T.ColorTransform(self._apply)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        rgb = image[..., ::-1] if self.format == "BGR" else image
        pixels = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        changed = self.change(pixels).numpy().transpose(1, 2, 0)
        return np.ascontiguousarray(changed[..., ::-1] if self.format == "BGR" else changed)


class RandomLighting:
    """detectron2's color noise of AlexNet, for `ColorAugmentation`."""

    def __init__(self, deviation: float) -> None:
        self.augmentation = T.RandomLighting(deviation)

    def __repr__(self) -> str:
        return f"RandomLighting({self.augmentation.scale})"

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the pixels, uint8 (3, height, width) in RGB, with noise added to each channel."""
        image = pixels.numpy().transpose(1, 2, 0)
        changed = self.augmentation.get_transform(image).apply_image(image)
        return torch.from_numpy(changed.transpose(2, 0, 1))


def build_image_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations of one image: crop, resizing, flip, colors; only resizing if not `is_train`."""
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    for augmentation in augmentations:
        if type(augmentation) is T.ResizeShortestEdge:
            augmentation.__class__ = SafeResizeShortestEdge  # overrides one method; the settings remain
    if not is_train:
        return augmentations
    section: Any = cfg.INPUT.get("AUGMENTATION", {})
    if section.get("LARGE_SCALE_JITTER"):
        # The first augmentation resizes
        augmentations[:1] = _large_scale_jitter(cfg)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, SafeRandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return augmentations + _color_augmentations(section, cfg.INPUT.FORMAT)


def jitter_size(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width of the crop of the large-scale jitter."""
    height, width = cfg.INPUT.AUGMENTATION.LARGE_SCALE_JITTER_SIZE or [cfg.INPUT.MAX_SIZE_TRAIN] * 2
    return height, width


def _large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Build large-scale jitter (Ghiasi et al. 2021, Sec. 3). Smaller images are padded by the model, as always."""
    low, high = cfg.INPUT.AUGMENTATION.LARGE_SCALE_JITTER
    height, width = jitter_size(cfg)
    return [SafeResizeScale(low, high, height, width), T.FixedSizeCrop((height, width), pad=False)]


def _color_augmentations(section: Any, format: str) -> list[T.Augmentation]:
    augmentations: list[T.Augmentation] = []
    if section.get("BRIGHTNESS"):
        augmentations.append(T.RandomBrightness(*section.BRIGHTNESS))
    if section.get("CONTRAST"):
        augmentations.append(T.RandomContrast(*section.CONTRAST))
    # detectron2's saturation expects RGB, as do all below
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = []
    if section.get("SATURATION") or section.get("HUE"):
        changes.append(v2.ColorJitter(saturation=section.SATURATION or None, hue=section.HUE or None))
    if section.get("LIGHTING"):
        changes.append(RandomLighting(section.LIGHTING))
    if section.get("PHOTOMETRIC_DISTORTION"):
        distortion = v2.RandomPhotometricDistort()
        changes.append(v2.RandomApply([distortion], p=section.PHOTOMETRIC_DISTORTION))
    return augmentations + [ColorAugmentation(change, format) for change in changes]
