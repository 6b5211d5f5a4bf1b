"""Image I/O: decode image files to pixels, at a smaller scale where that is enough, and apply EXIF orientation.

Color JPEGs are decoded by simplejpeg, which returns the same pixels as Pillow in three quarters of the time; all other
files are decoded by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fbnetv3.errors import DataError
from fbnetv3.utils.text import one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Suffixes, in lower case, of the files that count as images when a folder is searched."""

# JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. The decoded image must still be this many times larger than the
# result, so the caller's resizing filter determines the result (the `reducing_gap` of Pillow's documentation).
_REDUCING_GAP = 2.0
_JPEG_SCALES = (8, 4, 2)
_JPEG_START = b"\xff\xd8"

_ORIENTATION_TAG = 274
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptImageError(DataError):
    """An image file that is missing or cannot be decoded."""


def is_image_file(path: str | os.PathLike) -> bool:
    """Return whether a file name has one of `IMAGE_SUFFIXES`."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def find_image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if is_image_file(path) and path.is_file())


class EncodedImage:
    """The bytes of an image file, decoded only when its pixels are needed.

    Args:
        data: content of the file.
        name: name of the image for error messages.

    Raises:
        CorruptImageError: the data is not an image, or has too many pixels to decode safely.
    """

    size: tuple[int, int]
    """Width and height in pixels, in this order, as in Pillow."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._data = data
        self._is_color_jpeg = False  # which simplejpeg decodes
        with as_corrupt_image_error(name):
            if data.startswith(_JPEG_START):
                height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
                # Pillow warns above its limit and refuses above twice the limit
                if color_space == "YCbCr" and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                    self.size = width, height
                    self._is_color_jpeg = True
                    return
            self.size = _open_image(io.BytesIO(data)).size

    def decode(self, channels: int, downscale: float = 1.0) -> Tensor:
        """Decode the image to uint8 (channels, height, width): RGB for 3 channels, gray for 1.

        JPEGs that the caller will shrink by a factor of at least 4 are decoded at 1/2, 1/4 or 1/8 of their size.
        """
        scale = next((s for s in _JPEG_SCALES if downscale >= _REDUCING_GAP * s), 1)
        with as_corrupt_image_error(self.name):
            width, height = self.size
            if self._is_color_jpeg and channels == 3:
                # simplejpeg rejects unusual but readable files; Pillow decides about those
                with contextlib.suppress(ValueError):
                    limits = {
                        "min_height": math.ceil(height / scale),
                        "min_width": math.ceil(width / scale),
                    }
                    return torch.from_numpy(simplejpeg.decode_jpeg(self._data, **limits)).permute(2, 0, 1)
            image = _open_image(io.BytesIO(self._data))
            if scale > 1:
                image.draft(None, (max(1, width // scale), max(1, height // scale)))
            image.load()
            return pillow_to_tensor(image, channels)


@contextlib.contextmanager
def as_corrupt_image_error(name: str) -> Iterator[None]:
    """Turn any error in reading or decoding an image into a `CorruptImageError` that names it."""
    try:
        yield
    except Exception as error:  # Pillow's readers raise almost anything on corrupt files
        raise CorruptImageError(f"{name}: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return "has too many pixels to decode safely"
    if isinstance(error, UnidentifiedImageError):
        return "corrupt image (not a format that Pillow can read)"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return f"corrupt image ({one_line(error, 120)})"


def _open_image(file: BinaryIO) -> Image.Image:
    image = Image.open(file)
    if image.format == "EPS":  # Pillow would have Ghostscript run it
        raise ValueError("PostScript is a program, not an image")
    return image


def read_encoded_image(path: str) -> EncodedImage:
    """Read an image file without decoding it."""
    with as_corrupt_image_error(path):
        data = Path(path).read_bytes()
    return EncodedImage(data, path)


def pillow_to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Convert a Pillow image of any mode to uint8 (channels, height, width): RGB for 3 channels, gray for 1.

    Palettes are resolved and alpha is dropped. Gray of more than 8 bits is assumed to have 16, and scaled to 8.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I"):
        gray = np.asarray(image).clip(0, 65535) // 256
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.mode == "La":  # Pillow converts premultiplied gray and LAB only step by step
        image = image.convert("LA")
    elif image.mode == "LAB":
        image = image.convert("RGB")
    if image.mode != mode:
        image = image.convert(mode)
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(image.height, image.width, channels).permute(2, 0, 1)


def read_oriented_image(path: str | os.PathLike) -> Image.Image:
    """Read and decode an image file and apply its EXIF orientation; see `apply_exif_orientation`."""
    with as_corrupt_image_error(str(path)), Path(path).open("rb") as file, _open_image(file) as image:
        return apply_exif_orientation(image)


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Decode an image, apply its EXIF orientation, and convert modes that Pillow cannot convert to RGB losslessly."""
    image.load()
    orientation = exif_orientation(image)
    if image.mode.startswith("I") or image.mode in ("La", "LAB"):
        image = Image.fromarray(pillow_to_tensor(image, 3).permute(1, 2, 0).numpy())
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    if orientation == 1:
        return image
    return image.transpose(_TRANSPOSE_OF_ORIENTATION[orientation])


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (as stored) if it has none or an invalid one.

    TIFF always counts as 1, because Pillow rotates TIFF images itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupt EXIF data does not make the image unusable
        return 1
    return orientation if orientation in _TRANSPOSE_OF_ORIENTATION else 1


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an image after its EXIF orientation is applied, without decoding it."""
    width, height = image.size
    return (height, width) if exif_orientation(image) >= 5 else (width, height)
