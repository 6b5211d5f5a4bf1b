"""Images for detectors: EXIF orientation, the config's channel order, and resizing to at least one pixel per side."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy

from fbnetv3.data.image_io import read_oriented_image


def read_image_array(path: str | os.PathLike, format: str = "BGR") -> np.ndarray:
    """Read an image file as an array.

    Unlike detectron2's `read_image`, 16-bit gray images are scaled instead of clipped, and TIFFs are rotated only once.

    Args:
        path: the file.
        format: `INPUT.FORMAT`: "BGR", "RGB", "L" and so on.

    Returns:
        uint8 (height, width, channels), with its EXIF orientation applied.

    Raises:
        CorruptImageError: the file is missing, not an image, corrupt, or too large to decode safely.
    """
    return convert_PIL_to_numpy(read_oriented_image(path), format)


class SafeResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's transform, but each side keeps at least one pixel, however extreme the aspect ratio."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for an image (height, width, channels)."""
        transform = super().get_transform(image)
        if not isinstance(transform, T.ResizeTransform):
            return transform
        height = max(1, transform.new_h)
        width = max(1, transform.new_w)
        return T.ResizeTransform(transform.h, transform.w, height, width, transform.interp)


def use_safe_resize(augmentations: Sequence[T.Augmentation]) -> list[T.Augmentation]:
    """Replace detectron2's ResizeShortestEdge in a list of augmentations with `SafeResizeShortestEdge`."""
    replaced = []
    for augmentation in augmentations:
        if type(augmentation) is T.ResizeShortestEdge:
            sampling = "range" if augmentation.is_range else "choice"
            augmentation = SafeResizeShortestEdge(
                augmentation.short_edge_length,
                augmentation.max_size,
                sampling,
                augmentation.interp,
            )
        replaced.append(augmentation)
    return replaced


def inference_resize(cfg: CfgNode) -> SafeResizeShortestEdge:
    """Return the resizing of inference: `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`."""
    return SafeResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
