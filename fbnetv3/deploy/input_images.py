"""Load images that callers pass as paths, arrays or Pillow images, and provide samples that need no download."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, TypeVar

import numpy as np
from PIL import Image

from fbnetv3.data.corrupt_images import as_corrupt_image_error
from fbnetv3.data.image_folders import find_image_files
from fbnetv3.data.image_io import ArrayImage, EncodedImage, read_encoded_image
from fbnetv3.data.image_rendering import pillow_to_tensor, render_image
from fbnetv3.errors import DataError
from fbnetv3.utils.checks import check_choice
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.text import evenly_spaced

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

ImageLike = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | np.ndarray | Image.Image
ClassifierImage = ImageLike | EncodedImage
ON_ERROR = ("raise", "skip")
"""What predictors do about an image that cannot be read."""
_NUM_SAMPLE_IMAGES = 32  # images to compare an export on


def load_image(
    image: ClassifierImage, name: str = "the image", channels: int = 3
) -> Image.Image | EncodedImage:
    """Turn an image into what a preprocessing transform takes: an `EncodedImage`, or a rendered Pillow image.

    Args:
        image: a path; the content of an image file, as bytes or a file object opened in binary mode; a Pillow image of
            any mode, which is rendered as a file would be; or a uint8 array (H, W), (H, W, 1), (H, W, 3) in RGB,
            (H, W, 4) with alpha, or (H, W, channels). See `pillow_to_tensor`.
        name: what to call the image in error messages, unless it is a path.
        channels: channels of the network's input.

    Raises:
        DataError: the file cannot be read, or the argument is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_encoded_image(str(expand_path(image)))
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        image = _read_file_object(image, name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return EncodedImage(bytes(image), name)
    if isinstance(image, np.ndarray):
        image = _check_array(image, name, channels)
    if not isinstance(image, (Image.Image, EncodedImage)):
        raise DataError(
            f"{name}: is a {type(image).__name__}; an image is a path, the content of a file, a file object, a uint8 "
            "array or a Pillow image"
        )
    if not all(image.size):
        raise DataError(f"{name}: has no pixels")
    if isinstance(image, EncodedImage):
        return image
    name = _file_of(image) or name
    if channels in (1, 3):
        return render_image(image, name)
    return ArrayImage(pillow_to_tensor(image, channels, name).permute(1, 2, 0).numpy(), name)


def _read_file_object(file: Any, name: str) -> bytes:
    """Return the rest of an open file."""
    with as_corrupt_image_error(name):
        content = file.read()
    if not isinstance(content, bytes):
        raise DataError(f"{name}: the file gives {type(content).__name__}; open it in binary mode ('rb')")
    return content


def _check_array(pixels: np.ndarray, name: str, channels: int) -> Image.Image | ArrayImage:
    """Return an array of pixels as an image."""
    shape = pixels.shape
    has_image_shape = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4, channels))
    if pixels.dtype != np.uint8 or not has_image_shape:
        raise DataError(
            f"{name}: an array of type {pixels.dtype} and shape {shape} is not an image; expected uint8 (H, W) or "
            f"(H, W, {max(channels, 3)}), channels last, one array per image"
        )
    if channels not in (1, 3):
        return ArrayImage(pixels, name)
    return Image.fromarray(pixels[:, :, 0] if shape[2:] == (1,) else pixels)


def image_name(image: Any, index: int) -> str:
    """Return what messages call an image of a list: its path, or its position."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return image.name if isinstance(image, EncodedImage) else f"images[{index}]"


def prepare_images(
    images: Sequence[T], prepare: Callable[[T, str], R], start: int, on_error: str
) -> dict[int, R]:
    """Prepare images that may be unreadable, and return the results by position in `images`.

    Args:
        images: images in any form.
        prepare: function of an image and its name for messages.
        start: position of the first image in the caller's list, for messages.
        on_error: "raise", or "skip" to leave out images that cannot be read, with a warning.

    Raises:
        DataError: an image cannot be read, and `on_error` is "raise".
        UsageError: `on_error` has another value.
    """
    check_choice(on_error, "on_error", ON_ERROR)
    prepared = {}
    for i, image in enumerate(images):
        try:
            prepared[i] = prepare(image, image_name(image, start + i))
        except DataError as error:
            if on_error == "raise":
                raise
            logger.warning("skipped: %s", error)
    return prepared


def _file_of(image: Image.Image) -> str:
    """Return the path from which Pillow opened an image; "" if it was not a file."""
    return str(getattr(image, "filename", "") or "")


def load_rgb_array(image: ClassifierImage, name: str = "the image") -> np.ndarray:
    """Load an image as uint8 (H, W, 3) in RGB, as a viewer shows it; see `load_image`."""
    loaded = load_image(image, name)
    if isinstance(loaded, EncodedImage):
        return loaded.decode(3).permute(1, 2, 0).contiguous().numpy()
    return np.asarray(loaded.convert("RGB"))


def is_batch(images: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether the argument is a list of images rather than one image."""
    return isinstance(images, (list, tuple))


def sample_image_files(folder: str | os.PathLike, max_images: int = _NUM_SAMPLE_IMAGES) -> list[Path]:
    """List up to `max_images` image files of a folder and its subfolders, evenly spaced over the sorted paths."""
    root = expand_path(folder)
    paths = find_image_files(root)
    if not paths:
        problem = "contains no images" if root.is_dir() else "no such folder"
        raise DataError(f"{root}: {problem}")
    return evenly_spaced(paths, max_images)


def sample_classifier_images(channels: int) -> list[Image.Image | EncodedImage]:
    """Return scikit-learn's images: 32 handwritten digits for one channel; two photos and their quarters for others.

    Other channels than gray, RGB and RGBA repeat those of the photos.
    """
    if channels == 1:
        from sklearn.datasets import load_digits

        digits = load_digits().images[:_NUM_SAMPLE_IMAGES]
        pixels = (digits * (255 / 16)).round().astype(np.uint8)
        return [Image.fromarray(digit) for digit in pixels]
    images: list[Any] = []
    for photo in _photographs():
        width, height = (side // 2 for side in photo.size)
        corners = [(x, y) for y in (0, height) for x in (0, width)]
        images += [photo, *(photo.crop((x, y, x + width, y + height)) for x, y in corners)]
    if channels in (3, 4):
        return images
    repeated = [index % 3 for index in range(channels)]
    return [ArrayImage(np.asarray(image)[:, :, repeated]) for image in images]


def sample_detector_images() -> list[Image.Image]:
    """Return scikit-learn's two photos, with the left half, the right half and the central square of each."""
    images = []
    for photo in _photographs():
        width, height = photo.size
        half = width // 2
        start = (width - height) // 2
        spans = [(0, half), (half, 2 * half), (start, start + height)]
        images += [photo, *(photo.crop((left, 0, right, height)) for left, right in spans)]
    return images


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(photo) for photo in load_sample_images().images]
