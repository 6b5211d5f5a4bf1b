"""Render an image of any color mode as a viewer shows it: upright, on white, in gray or RGB of 8 bits.

Every reader of images renders them here, so that pixels mean the same in training, evaluation and deployment. The table
in docs/training.md describes what becomes of each mode.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fbnetv3.data.corrupt_images import CorruptImageError, as_corrupt_image_error

_GRAY_MODES = ("1", "L", "LA")
_COLOR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_MAX_16_BITS = 65_535
_MIN_BRIGHTEST = 4096  # of 16 bits: images of 12 bits and less would have no more than 16 of 256 levels

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


def render_image(image: Image.Image, name: str = "") -> Image.Image:
    """Return an image upright, on white, in mode L (if it has no colors) or RGB.

    An image that is so already is returned as it is.

    Args:
        image: a Pillow image of any mode.
        name: name of the image for error messages; by default its path, if it has one.

    Raises:
        CorruptImageError: the image cannot be decoded, its mode has no defined colors, or its values have more than 8
            bits and are out of range.
    """
    name = name or str(getattr(image, "filename", "") or "the image")
    with as_corrupt_image_error(name):
        # Decoding rotates TIFFs, reads the EXIF data at the end of PNGs, and forgets the number of bits in the file
        has_16_bits = _stores_colors_of_16_bits(image)
        image.load()
        orientation = exif_orientation(image)
        rendered = _to_8_bits(image, name)
        if has_16_bits:
            _check_colors_of_16_bits(rendered, image.mode, name)
        if orientation != 1:
            rendered = rendered.transpose(_TRANSPOSE_OF_ORIENTATION[orientation])
        if rendered is not image:
            rendered.info = {}  # its EXIF data and transparency have been applied
        return rendered


def pillow_to_tensor(image: Image.Image, channels: int, name: str = "") -> Tensor:
    """Render a Pillow image to uint8 (channels, height, width): RGB for 3 channels, gray for 1; see `render_image`."""
    rendered = render_image(image, name)
    mode = {1: "L", 3: "RGB"}[channels]
    if rendered.mode != mode:
        rendered = rendered.convert(mode)
    pixels = torch.from_numpy(np.array(rendered))
    return pixels.view(rendered.height, rendered.width, channels).permute(2, 0, 1)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (as stored) if it has none or an invalid one.

    TIFF always counts as 1, because Pillow rotates TIFF images itself.
    """
    if image.format == "TIFF":
        return 1
    with contextlib.suppress(Exception):  # corrupt EXIF data does not make the image unusable
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        if orientation in _TRANSPOSE_OF_ORIENTATION:
            return int(orientation)
    return 1


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an image after its EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if exif_orientation(image) >= 5 else (width, height)


def turn_pixels(pixels: Tensor, orientation: int) -> Tensor:
    """Apply an EXIF orientation to pixels (channels, height, width)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    # Which sides are then the wrong way around
    flipped = [dim for dim, turned in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in turned]
    return pixels.flip(flipped) if flipped else pixels


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert to mode L or RGB on white."""
    mode = image.mode
    if mode == "F":
        return _from_floats(image, name)
    if mode.startswith("I"):
        return _from_integers(image, name)
    if mode == "La":  # Pillow converts premultiplied gray only to LA
        image = image.convert("LA")
    elif mode not in _GRAY_MODES + _COLOR_MODES:
        raise CorruptImageError(f"{name}: mode {mode} is not supported; convert the image to RGB")
    display_mode = "L" if image.mode in _GRAY_MODES else "RGB"
    if image.has_transparency_data:
        opaque = Image.new(display_mode, image.size, "white")
        transparent = image.convert("LA" if display_mode == "L" else "RGBA")
        opaque.paste(transparent.convert(display_mode), mask=transparent.getchannel("A"))
        return opaque
    return image if image.mode == display_mode else image.convert(display_mode)


def _from_integers(image: Image.Image, name: str) -> Image.Image:
    """Convert gray of 16 bits, or of 32 bits with values of 16, to mode L."""
    values = np.asarray(image)
    lowest, brightest = int(values.min()), int(values.max())
    if lowest < 0 or brightest > _MAX_16_BITS:
        raise CorruptImageError(
            f"{name}: mode {image.mode} has values from {lowest} to {brightest}; scale them to 0..{_MAX_16_BITS}"
        )
    if 0 < brightest < _MIN_BRIGHTEST:
        raise _too_dark(name, image.mode, f"{brightest}")
    gray = (values >> 8).astype(np.uint8)
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray)


def _from_floats(image: Image.Image, name: str) -> Image.Image:
    """Convert gray in [0, 1] to mode L."""
    values = np.asarray(image)
    lowest, brightest = values.min(), values.max()  # NaN if any value is
    if not (lowest >= 0 and brightest <= 1):
        raise CorruptImageError(
            f"{name}: mode F has values from {lowest:g} to {brightest:g}; scale them to 0..1"
        )
    if 0 < brightest < _MIN_BRIGHTEST / (_MAX_16_BITS + 1):
        raise CorruptImageError(
            f"{name}: mode F, the brightest value is {brightest:g} of 1, so that the image would be almost black; "
            "scale its values to 0..1"
        )
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _stores_colors_of_16_bits(image: Image.Image) -> bool:
    """Return whether the file of an image that is not decoded yet has more bits per color than the image will have."""
    if image.mode.startswith("I"):
        return False
    for codec, _, _, arguments in getattr(image, "tile", []):
        # Most decoders get a raw mode such as "RGB;16B". SGI's get the bytes per color, PPM's the largest value, last
        last = arguments[-1] if isinstance(arguments, tuple) else 0
        if ";16" in str(arguments) or codec == "SGI16" or (codec == "sgi_rle" and last == 2):
            return True
        if codec in ("ppm", "ppm_plain") and last > 255:
            return True
    return False


def _check_colors_of_16_bits(rendered: Image.Image, mode: str, name: str) -> None:
    # Pillow keeps the high bytes only
    brightest = int(np.asarray(rendered).max())
    if brightest < _MIN_BRIGHTEST // 256:
        raise _too_dark(name, f"{mode} of 16 bits", f"below {256 * (brightest + 1)}")


def _too_dark(name: str, mode: str, brightest: str) -> CorruptImageError:
    return CorruptImageError(
        f"{name}: mode {mode}, the brightest value is {brightest} of {_MAX_16_BITS}, so that the image would be almost "
        f"black; scale its values to 0..{_MAX_16_BITS}, or save it with 8 bits"
    )
