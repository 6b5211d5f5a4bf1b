"""Images as users have them: paths, arrays, Pillow's; and some to try a network with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from PIL import Image

from fbnetv3.data.image_io import EncodedImage, read_image
from fbnetv3.data.upright import read_upright, upright
from fbnetv3.errors import DataError

AnyPicture = str | os.PathLike | np.ndarray | Image.Image
AnyInput = AnyPicture | EncodedImage
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TRIED = 32


def opened(image: AnyInput, name: str = "the image") -> Image.Image | EncodedImage:
    """An image in the form that preprocessing takes.

    Args:
        image: the path of a file; an array, uint8 (H, W), (H, W, 1), (H, W, 3) in RGB, or (H, W, 4) with alpha; or
            a Pillow image.
        name: what to call it in a message, where it is no path.

    Raises:
        DataError: it is none of these, missing, or damaged.
    """
    if isinstance(image, (Image.Image, EncodedImage)):
        if not all(image.size):
            raise DataError(f"{name}: has no pixels")
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_image(str(_existing(image)))
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise DataError(f"{name}: is a {type(image).__name__}; an image is a path, a uint8 array or a Pillow image")


def upright_pixels(image: AnyPicture, name: str = "the image") -> np.ndarray:
    """The pixels of an image as it is seen: turned as its EXIF says, where it has any.

    Args:
        image: as for `opened`.
        name: what to call it in a message, where it is no path.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: it is no image, missing, or damaged.
    """
    if isinstance(image, (str, os.PathLike)):
        seen = read_upright(_existing(image))
    else:
        seen = upright(cast("Image.Image", opened(image, name)))
    return np.asarray(seen.convert("RGB"))


def _existing(image: str | os.PathLike) -> Path:
    path = Path(image).expanduser()
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not an image: name its files")
    if not path.exists():
        raise DataError(f"{path}: no such image")
    return path


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    shape = tuple(array.shape)
    if array.ndim == 4:
        raise DataError(f"{name}: an array {shape} is several images: pass list(array)")
    if array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = "; channels come last" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise DataError(f"{name}: an array {shape} is no image: (H, W) or (H, W, 3) is{hint}")
    if array.dtype != np.uint8:
        raise DataError(f"{name}: an array of {array.dtype} is no image: give uint8, 0 to 255")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array)


def images_below(folder: str | os.PathLike, most: int = _TRIED) -> list[EncodedImage]:
    """Images of a folder, as `paths_below` finds them.

    Raises:
        DataError: there is none, or one is damaged.
    """
    return [read_image(str(path)) for path in paths_below(folder, most)]


def paths_below(folder: str | os.PathLike, most: int = _TRIED) -> list[Path]:
    """Image files of a folder and the folders in it, spread evenly over their sorted names.

    Raises:
        DataError: there is none.
    """
    root = Path(folder).expanduser()
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{root}: {'no image in it' if root.is_dir() else 'no such folder'}")
    step = max(1, len(paths) / most)
    return [paths[int(i * step)] for i in range(min(most, len(paths)))]


def sample_images(channels: int) -> list[Image.Image]:
    """Real images that need no download, from scikit-learn: for one channel 32 handwritten digits, else two
    photographs and the quarters of each."""
    if channels == 1:
        from sklearn.datasets import load_digits

        return [
            Image.fromarray((digit * (255 / 16)).round().astype(np.uint8)) for digit in load_digits().images[:_TRIED]
        ]
    from sklearn.datasets import load_sample_images

    found = []
    for photo in load_sample_images().images:
        half = [side // 2 for side in photo.shape[:2]]
        found += [photo, *(part for rows in np.split(photo[: 2 * half[0]], 2) for part in _halves(rows, half[1]))]
    return [Image.fromarray(part) for part in found]


def sample_photographs() -> list[Image.Image]:
    """Photographs of three shapes, from scikit-learn: two, and of each the halves and the middle square."""
    from sklearn.datasets import load_sample_images

    found = []
    for photo in load_sample_images().images:
        height, width = photo.shape[:2]
        left = (width - height) // 2
        found += [photo, *_halves(photo, width // 2), np.ascontiguousarray(photo[:, left : left + height])]
    return [Image.fromarray(part) for part in found]


def _halves(rows: np.ndarray, half: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(part) for part in np.split(rows[:, : 2 * half], 2, axis=1)]


def is_several(images: Any) -> TypeGuard[Sequence[Any]]:
    """Whether the argument is a list of images."""
    return isinstance(images, (list, tuple))
