"""Images as detectors want them: upright, in the channels that the config names, and never shrunk to nothing."""

from __future__ import annotations

import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy

from fbnetv3.data.upright import read_upright


def read_image(path: str | os.PathLike, format: str = "BGR") -> np.ndarray:
    """Read a file as detectron2's own function does, but 16-bit grey is scaled and not clipped, and TIFF turned once.

    Args:
        path: the file.
        format: `INPUT.FORMAT`: "BGR", "RGB", "L" and so on.

    Returns:
        uint8 (height, width, channels), turned as the file's EXIF says.

    Raises:
        DamagedImageError: the file is gone, or is no image, or a damaged one, or one too large to be safe; named.
    """
    return convert_PIL_to_numpy(read_upright(path), format)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, with at least one pixel left of either side, however long and thin the image is."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of an image (height, width, channels)."""
        found = super().get_transform(image)
        if isinstance(found, T.ResizeTransform) and min(found.new_h, found.new_w) < 1:
            return T.ResizeTransform(found.h, found.w, max(1, found.new_h), max(1, found.new_w), found.interp)
        return found


def with_safe_resize(augmentations: list[T.Augmentation]) -> list[T.Augmentation]:
    """The same augmentations, whose resizing leaves at least one pixel of either side."""
    return [
        ResizeShortestEdge(a.short_edge_length, a.max_size, "range" if a.is_range else "choice", a.interp)
        if type(a) is T.ResizeShortestEdge
        else a
        for a in augmentations
    ]


def resize_at_test(cfg: CfgNode) -> ResizeShortestEdge:
    """What inference does to an image's size: `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`."""
    return ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
