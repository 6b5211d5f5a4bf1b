"""Image files as detectors want them: any kind that Pillow reads, upright, and never shrunk to nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, UnidentifiedImageError

from fbnetv3.data.decoding import DamagedImageError, pixels_of

_TAG_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    try:
        with Path(path).open("rb") as file, Image.open(file) as image:
            image.load()
            tag = orientation(image)
            plain = _plain(image)
            return convert_PIL_to_numpy(plain.transpose(_UPRIGHT[tag]) if tag in _UPRIGHT else plain, format)
    except UnidentifiedImageError:
        raise DamagedImageError(f"{path}: damaged image (of no format that Pillow knows)") from None
    except FileNotFoundError:
        raise DamagedImageError(f"{path}: is gone") from None
    except Image.DecompressionBombError:
        raise DamagedImageError(f"{path}: has more pixels than is safe to decode") from None
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise DamagedImageError(f"{path}: cannot be read ({reason})") from None


def orientation(image: Image.Image) -> int:
    """The EXIF tag that says how to turn an image, 1 to 8; 1, as it is, where it has none or makes no sense.

    TIFF counts as upright: Pillow turns it by itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        tag = image.getexif().get(_TAG_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse the image
        return 1
    return tag if tag in _UPRIGHT else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as it is seen, without decoding it."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow turns into any other without a loss."""
    if image.mode.startswith("I") or image.mode in ("La", "LAB"):
        return Image.fromarray(pixels_of(image, 3).permute(1, 2, 0).numpy())
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")
    return image


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
