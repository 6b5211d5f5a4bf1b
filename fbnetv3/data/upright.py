"""Image files as they are seen: decoded whole, in a plain mode, and turned as their EXIF says."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fbnetv3.data.image_io import DamagedImageError, pixels_of, refusing_programs

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


def read_upright(path: str | os.PathLike) -> Image.Image:
    """The image of a file; see `upright`.

    Raises:
        DamagedImageError: the file is gone, or is no image, or a damaged one, or one too large to be safe; named.
    """
    try:
        with Path(path).open("rb") as file, Image.open(file) as image:
            return upright(refusing_programs(image))
    except UnidentifiedImageError:
        raise DamagedImageError(f"{path}: damaged image (of no format that Pillow knows)") from None
    except FileNotFoundError:
        raise DamagedImageError(f"{path}: is gone") from None
    except Image.DecompressionBombError:
        raise DamagedImageError(f"{path}: has more pixels than is safe to decode") from None
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise DamagedImageError(f"{path}: cannot be read ({reason})") from None


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF says, in a mode that Pillow turns into any other without a loss."""
    image.load()
    tag = orientation(image)
    plain = _plain(image)
    return plain.transpose(_UPRIGHT[tag]) if tag in _UPRIGHT else plain


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
    if image.mode.startswith("I") or image.mode in ("La", "LAB"):
        return Image.fromarray(pixels_of(image, 3).permute(1, 2, 0).numpy())
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")
    return image
