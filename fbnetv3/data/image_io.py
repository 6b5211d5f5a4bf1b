"""Image I/O: decode image files to upright pixels, at a smaller scale where that is enough.

Color JPEGs are decoded by simplejpeg, which returns the same pixels as Pillow in three quarters of the time; all other
files are decoded by Pillow. NumPy files (.npy) are arrays of any number of channels.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fbnetv3.data.corrupt_images import CorruptImageError, as_corrupt_image_error
from fbnetv3.data.image_rendering import (
    array_to_8_bits,
    array_to_tensor,
    exif_orientation,
    oriented_size,
    pillow_to_tensor,
    render_image,
    turn_pixels,
)

# JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. The decoded image must still be this many times larger than the
# result, so the caller's resizing filter determines the result (the `reducing_gap` of Pillow's documentation).
_REDUCING_GAP = 2.0
_JPEG_SCALES = (8, 4, 2)
_JPEG_START = b"\xff\xd8"
_NPY_START = b"\x93NUMPY"
_TIFF_STARTS = (b"II*\x00", b"MM\x00*")
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks of PNGs that may have an orientation: EXIF, EXIF as older programs store it, and XMP
_PNG_CHUNKS = (b"eXIf", b"tEXtRaw profile", b"zTXtRaw profile", b"iTXtXML:com.adobe")


class EncodedImage:
    """The bytes of an image file, decoded only when its pixels are needed.

    Args:
        data: content of the file.
        name: name of the image for error messages.
        max_pixels: maximum width times height, in addition to Pillow's limit.

    Raises:
        CorruptImageError: the data is not an image, or has too many pixels to decode safely.
    """

    size: tuple[int, int]
    """Width and height in pixels, in this order, with the EXIF orientation applied."""
    _is_color_jpeg = False  # which simplejpeg decodes
    _orientation = 1
    _array: np.ndarray | None = None  # uint8 (height, width, channels)

    def __init__(self, data: bytes, name: str, max_pixels: float = math.inf) -> None:
        self.name = name
        self._data = data
        self._read_header(data)
        width, height = self.size
        if width * height > max_pixels:
            raise CorruptImageError(
                f"{name}: has too many pixels: {width} x {height}, more than {max_pixels / 1e6:g} million"
            )

    def _read_header(self, data: bytes) -> None:
        with as_corrupt_image_error(self.name):
            if data.startswith(_NPY_START):
                self._set_array(np.load(io.BytesIO(data), allow_pickle=False))
                return
            if data.startswith(_JPEG_START):
                height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
                # Pillow warns above its limit and refuses above twice the limit
                if color_space == "YCbCr" and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                    self._is_color_jpeg = True
                    self.size = width, height
                    if not _may_be_turned(data):
                        return
            # Reading the orientation decodes some PNGs
            image = _open_image(io.BytesIO(data))
            self.size = oriented_size(image) if _may_be_turned(data) else image.size
            self._orientation = exif_orientation(image) if self._is_color_jpeg else 1

    def _set_array(self, values: np.ndarray) -> None:
        self._array = array_to_8_bits(values, self.name)
        height, width, _ = self._array.shape
        self.size = width, height

    @property
    def array_channels(self) -> int:
        """Number of channels of an array; 0 for image files, which Pillow converts to other numbers of channels."""
        return 0 if self._array is None else self._array.shape[2]

    def preview(self, downscale: float = 1.0) -> Tensor:
        """Decode to RGB for a picture, uint8 (3, height, width). Of other channels, these are the first ones."""
        count = self.array_channels
        if count in (0, 1, 3, 4):
            return self.decode(3, downscale)
        return self.decode(count)[[0, 1, 2] if count > 2 else [0, 0, 0]]

    def decode(self, channels: int, downscale: float = 1.0) -> Tensor:
        """Decode the image to uint8 (channels, height, width), as a viewer shows it; see `pillow_to_tensor`.

        Three channels are RGB, one is gray, four are RGBA; others are those of pages or arrays. JPEGs that the caller
        will shrink by a factor of at least 4 are decoded at 1/2, 1/4 or 1/8 of their size.
        """
        scale = next((s for s in _JPEG_SCALES if downscale >= _REDUCING_GAP * s), 1)
        with as_corrupt_image_error(self.name):
            if self._array is not None:
                return array_to_tensor(self._array, channels, self.name)
            width, height = self.size if self._orientation < 5 else self.size[::-1]
            if self._is_color_jpeg and channels == 3:
                # simplejpeg rejects unusual but readable files; Pillow decides about those
                with contextlib.suppress(ValueError):
                    limits = {
                        "min_height": math.ceil(height / scale),
                        "min_width": math.ceil(width / scale),
                    }
                    pixels = torch.from_numpy(simplejpeg.decode_jpeg(self._data, **limits)).permute(2, 0, 1)
                    return turn_pixels(pixels, self._orientation)
            image = _open_image(io.BytesIO(self._data))
            if scale > 1:
                width, height = image.size
                image.draft(None, (max(1, width // scale), max(1, height // scale)))
            return pillow_to_tensor(image, channels, self.name)

    def render(self) -> Image.Image:
        """Return the image as a viewer shows it, in mode L or RGB; see `render_image`."""
        with as_corrupt_image_error(self.name), _open_image(io.BytesIO(self._data)) as image:
            return render_image(image, self.name)


class ArrayImage(EncodedImage):
    """An image in memory with any number of channels, for datasets and predictors; it is used like an image file.

    Args:
        pixels: (height, width) or (height, width, channels): uint8, integers from 0 to 65,535 or floats from 0 to 1.
        name: name of the image for error messages.

    Raises:
        CorruptImageError: the array has other axes, or values that are out of range.
    """

    def __init__(self, pixels: np.ndarray, name: str = "the image") -> None:
        self.name = name
        self._data = b""
        self._set_array(pixels)


def _may_be_turned(data: bytes) -> bool:
    """Return whether a file may have an orientation. That is quick to see for most JPEGs and PNGs."""
    if data.startswith(_JPEG_START):
        return _has_application_segment(data)
    if data.startswith(_PNG_START):
        return _has_metadata_chunk(data)
    return True


def _has_application_segment(data: bytes) -> bool:
    """Return whether a JPEG has a segment APP1, for EXIF or XMP, in front of its pixels."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker in (b"\xe1", b"\xff"):  # or fill bytes, which are left to Pillow
            return True
        if marker == b"\xda":
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True


def _has_metadata_chunk(data: bytes) -> bool:
    """Return whether a PNG has one of `_PNG_CHUNKS`, in front of its pixels or after them."""
    position = len(_PNG_START)
    while position < len(data):
        # Length, kind, content and checksum of a chunk
        if data.startswith(_PNG_CHUNKS, position + 4):
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def _open_image(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in _TIFF_STARTS:
            problem = (
                "Pillow does not read this kind of TIFF: if it has many bands, save each as a gray page"
            )
            raise ValueError(problem) from None
        raise
    if image.format == "EPS":  # Pillow would have Ghostscript run it
        raise ValueError("PostScript is a program, not an image")
    return image


def read_encoded_image(path: str) -> EncodedImage:
    """Read an image file without decoding it."""
    with as_corrupt_image_error(path):
        data = Path(path).read_bytes()
    return EncodedImage(data, path)


def read_rendered_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file as a viewer shows it, in mode L or RGB; see `render_image`."""
    with as_corrupt_image_error(str(path)), Path(path).open("rb") as file, _open_image(file) as image:
        return render_image(image, str(path))
