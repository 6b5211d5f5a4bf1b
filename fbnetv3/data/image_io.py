"""Image I/O: decode image files to upright pixels, at a smaller scale where that is enough.

Color JPEGs are decoded by simplejpeg, which returns the same pixels as Pillow in three quarters of the time; all other
files are decoded by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from typing import BinaryIO

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from fbnetv3.data.corrupt_images import as_corrupt_image_error
from fbnetv3.data.image_rendering import (
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
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Chunks of PNGs that may have an orientation: EXIF, EXIF as older programs store it, and XMP
_PNG_CHUNKS = (b"eXIf", b"tEXtRaw profile", b"zTXtRaw profile", b"iTXtXML:com.adobe")


class EncodedImage:
    """The bytes of an image file, decoded only when its pixels are needed.

    Args:
        data: content of the file.
        name: name of the image for error messages.

    Raises:
        CorruptImageError: the data is not an image, or has too many pixels to decode safely.
    """

    size: tuple[int, int]
    """Width and height in pixels, in this order, with the EXIF orientation applied."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._data = data
        self._is_color_jpeg = False  # which simplejpeg decodes
        self._orientation = 1
        with as_corrupt_image_error(name):
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

    def decode(self, channels: int, downscale: float = 1.0) -> Tensor:
        """Decode the image to uint8 (channels, height, width), as a viewer shows it; see `render_image`.

        Three channels are RGB, one is gray. JPEGs that the caller will shrink by a factor of at least 4 are decoded at
        1/2, 1/4 or 1/8 of their size.
        """
        scale = next((s for s in _JPEG_SCALES if downscale >= _REDUCING_GAP * s), 1)
        with as_corrupt_image_error(self.name):
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
    image = Image.open(file)
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
