"""From an image file's bytes to pixels: damage is named, and what will be shrunk far is decoded at a smaller scale.

Colour JPEGs go through simplejpeg, which gives Pillow's pixels in three quarters of the time; all else through Pillow.
"""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fbnetv3.errors import DataError

# JPEG can be decoded at a half, a quarter or an eighth of its size; whoever shrinks the result must still shrink it by
# this much, so that it is his filter that decides what it looks like (the `reducing_gap` of Pillow's documentation).
_GAP = 2.0
_SHRINKS = (8, 4, 2)
_JPEG = b"\xff\xd8"


class DamagedImageError(DataError):
    """An image that cannot be decoded."""


class EncodedImage:
    """An image file that is decoded when its pixels are wanted.

    Args:
        data: the file's content.
        name: what to call it in a message.

    Raises:
        DamagedImageError: it is no image, or one with more pixels than is safe to decode.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self._data, self._image = name, data, None
        try:
            if data.startswith(_JPEG):
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if colours == "YCbCr" and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                    self.size = width, height
                    return
            self._image = refusing_programs(Image.open(io.BytesIO(data)))
            self.size = self._image.size
        except Image.DecompressionBombError:
            raise DamagedImageError(f"{name}: has more pixels than is safe to decode") from None
        except UnidentifiedImageError:
            raise DamagedImageError(f"{name}: damaged image (of no format that Pillow knows)") from None
        except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
            raise self._damaged(error) from None

    def pixels(self, channels: int, shrunk: float = 1.0) -> Tensor:
        """Decode it.

        Args:
            channels: 3 for RGB, 1 for grey.
            shrunk: how many times smaller it will be made. Much smaller, and JPEG comes at a part of its size, a half
                to an eighth.

        Returns:
            uint8 (channels, height, width).

        Raises:
            DamagedImageError: it cannot be decoded.
        """
        scale = next((s for s in _SHRINKS if shrunk >= _GAP * s), 1)
        try:
            if self._image is None and channels == 3:
                width, height = (math.ceil(side / scale) for side in self.size)
                least = {"min_height": height, "min_width": width} if scale > 1 else {}
                with contextlib.suppress(ValueError):  # it takes every oddity for damage: Pillow shall say
                    return torch.from_numpy(simplejpeg.decode_jpeg(self._data, **least)).permute(2, 0, 1)
            image = self._image or refusing_programs(Image.open(io.BytesIO(self._data)))
            if scale > 1:
                width, height = (max(1, side // scale) for side in image.size)
                image.draft(None, (width, height))
            image.load()
            return pixels_of(image, channels)
        except Exception as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DamagedImageError:
        return DamagedImageError(f"{self.name}: damaged image ({' '.join(str(error).split())[:120]})")


def refusing_programs(image: Image.Image) -> Image.Image:
    """The image, unless it is a program: PostScript, which Pillow would have Ghostscript run.

    Raises:
        ValueError: it is one.
    """
    if image.format == "EPS":
        raise ValueError("PostScript is a program, and no image")
    return image


def read_image(path: str) -> EncodedImage:
    """The image of a file.

    Raises:
        DamagedImageError: the file is gone or cannot be read, or is no image.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DamagedImageError(f"{path}: is gone") from None
    except OSError as error:
        raise DamagedImageError(f"{path}: cannot be read ({error.strerror})") from None
    return EncodedImage(data, path)


def pixels_of(image: Image.Image, channels: int) -> Tensor:
    """An image of any mode as uint8 (channels, height, width): RGB for 3 channels, grey for 1.

    Palette and alpha are resolved by Pillow; grey of more than 8 bits is scaled from 16.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.mode in ("La", "LAB"):
        image = image.convert("LA" if image.mode == "La" else "RGB")
    if image.mode != mode:
        image = image.convert(mode)
    return torch.from_numpy(np.array(image)).view(image.height, image.width, channels).permute(2, 0, 1)
