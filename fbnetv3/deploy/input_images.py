"""Images as callers pass them: paths, arrays or Pillow images; and sample images that need no download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from PIL import Image

from fbnetv3.data.image_io import (
    EncodedImage,
    apply_exif_orientation,
    find_image_files,
    read_encoded_image,
    read_oriented_image,
)
from fbnetv3.errors import DataError
from fbnetv3.utils.text import evenly_spaced

ImageLike = str | os.PathLike | np.ndarray | Image.Image
ClassifierImage = ImageLike | EncodedImage
_DEFAULT_COUNT = 32  # images to compare an export on


def load_image(image: ClassifierImage, name: str = "the image") -> Image.Image | EncodedImage:
    """Turn an image into what a preprocessing transform takes.

    Args:
        image: a path; a Pillow image; or a uint8 array (H, W), (H, W, 1), (H, W, 3) in RGB, or (H, W, 4) with alpha.
        name: name for error messages unless it is a path.
    """
    if isinstance(image, (Image.Image, EncodedImage)):
        if not all(image.size):
            raise DataError(f"{name}: has no pixels")
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_encoded_image(str(_check_image_path(image)))
    if isinstance(image, np.ndarray):
        return _image_from_array(image, name)
    raise DataError(f"{name}: is a {type(image).__name__}; an image is a path, a uint8 array or a Pillow image")


def load_rgb_array(image: ImageLike, name: str = "the image") -> np.ndarray:
    """Load an image as an array, rotated as its EXIF orientation says.

    Args:
        image: see `load_image`.
        name: name for error messages unless it is a path.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    if isinstance(image, (str, os.PathLike)):
        oriented = read_oriented_image(_check_image_path(image))
    else:
        oriented = apply_exif_orientation(cast("Image.Image", load_image(image, name)))
    return np.asarray(oriented.convert("RGB"))


def is_batch(images: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether the argument is a list of images rather than one image."""
    return isinstance(images, (list, tuple))


def _check_image_path(image: str | os.PathLike) -> Path:
    path = Path(image).expanduser()
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not an image; pass the files in it")
    if not path.exists():
        raise DataError(f"{path}: no such image")
    return path


def _image_from_array(array: np.ndarray, name: str) -> Image.Image:
    shape = tuple(array.shape)
    if array.ndim == 4:
        raise DataError(f"{name}: an array of shape {shape} holds several images; pass list(array)")
    if array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = "; channels come last" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise DataError(f"{name}: an array of shape {shape} is not an image; expected (H, W) or (H, W, 3){hint}")
    if array.dtype != np.uint8:
        raise DataError(f"{name}: an array of type {array.dtype} is not an image; expected uint8, 0 to 255")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array)


def read_image_folder(folder: str | os.PathLike, max_images: int = _DEFAULT_COUNT) -> list[EncodedImage]:
    """Read images of a folder, chosen as by `list_image_files`."""
    return [read_encoded_image(str(path)) for path in list_image_files(folder, max_images)]


def list_image_files(folder: str | os.PathLike, max_images: int = _DEFAULT_COUNT) -> list[Path]:
    """List image files in a folder and its subfolders, evenly spaced over the sorted names."""
    root = Path(folder).expanduser()
    paths = find_image_files(root)
    if not paths:
        raise DataError(f"{root}: {'contains no images' if root.is_dir() else 'no such folder'}")
    return evenly_spaced(paths, max_images)


def sample_images(channels: int) -> list[Image.Image]:
    """Return scikit-learn's images: for one channel 32 handwritten digits, for three 2 photos and their quarters."""
    if channels == 1:
        from sklearn.datasets import load_digits

        digits = load_digits().images[:_DEFAULT_COUNT]
        return [Image.fromarray((digit * (255 / 16)).round().astype(np.uint8)) for digit in digits]
    # Each photo and its quarters
    arrays = []
    for photo in _photographs():
        half_height, half_width = (side // 2 for side in photo.shape[:2])
        rows = np.split(photo[: 2 * half_height], 2)
        arrays += [photo, *_left_and_right(rows[0], half_width), *_left_and_right(rows[1], half_width)]
    return [Image.fromarray(array) for array in arrays]


def sample_photographs() -> list[Image.Image]:
    """Return scikit-learn's two photos, and of each the left and right half and the square in the middle."""
    # Each photo, its halves and its middle: landscape, portrait and square
    arrays = []
    for photo in _photographs():
        height, width = photo.shape[:2]
        start = (width - height) // 2
        square = np.ascontiguousarray(photo[:, start : start + height])
        arrays += [photo, *_left_and_right(photo, width // 2), square]
    return [Image.fromarray(array) for array in arrays]


def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def _left_and_right(rows: np.ndarray, half_width: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(half) for half in np.split(rows[:, : 2 * half_width], 2, axis=1)]
