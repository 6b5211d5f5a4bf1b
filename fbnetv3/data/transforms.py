"""From an image to the network's input, in training and in evaluation.

The work is done on 8-bit tensors, whose resizing torch has in vector instructions; torchvision's transforms v2 draw the
crops and augment. The steps up to the last one, normalisation, are the same for single images and for batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2.functional import to_pil_image

from fbnetv3.data.image_io import EncodedImage, pixels_of
from fbnetv3.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

AnyImage = Image.Image | EncodedImage
Transform = Callable[[AnyImage], Tensor]
# Top, left, height and width, in pixels.
Box = tuple[int, int, int, int]

_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}
INTERPOLATIONS = tuple(_MODES)
_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Preprocessing:
    """What evaluation does to an image: resize the short side, crop the centre, scale to [0, 1], normalise.

    Attributes:
        resolution: side of the crop, in pixels.
        resize: short side before the crop, in pixels.
        mean, std: of RGB (or grey) in [0, 1].
        interpolation: bilinear, bicubic or nearest.
    """

    resolution: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        """Channels of the input: 3 for RGB, 1 for grey."""
        return len(self.mean)

    def transform(self) -> Transform:
        """From an image to the network's input, float32 (channels, resolution, resolution)."""
        return v2.Compose([self.pixels(), self.normalize])

    def pixels(self) -> Transform:
        """The same without its last step: to uint8 (channels, resolution, resolution)."""
        return _CentreCrop(self)

    def normalize(self, pixels: Tensor) -> Tensor:
        """The last step, for one image or a batch: uint8 (…, channels, H, W) to float32."""
        return normalized(pixels, self.mean, self.std)


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels, uint8 (…, channels, H, W), as float32 in [0, 1], minus the mean, divided by the deviation."""
    shape = (-1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(shape)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(shape)
    return pixels.to(torch.float32).mul_(scale).sub_(shift)


def train_pixels(
    preprocessing: Preprocessing,
    *,
    crop: str,
    crop_scale: Sequence[float],
    crop_padding: int,
    flip: bool,
    auto_augment: str = "none",
    random_erasing: float = 0.0,
) -> Transform:
    """The transform of training, all but normalisation: an image to uint8 (channels, resolution, resolution).

    Args:
        preprocessing: resolution and normalisation.
        crop: "random_resized", "padded" or "none".
        crop_scale: smallest and largest share of the area for "random_resized".
        crop_padding: pixels on each side for "padded".
        flip: mirror half of the images.
        auto_augment: "autoaugment" (ImageNet's policy), "randaugment", or "none".
        random_erasing: share of the images from which a rectangle is erased, to the mean.

    Raises:
        UsageError: more padding than image.
    """
    if crop == "padded" and crop_padding > preprocessing.resolution:
        raise UsageError(
            f"INPUT.CROP_PADDING {crop_padding} is more than the input of {preprocessing.resolution} pixels"
        )
    mode = InterpolationMode(preprocessing.interpolation)
    policies = {"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment}
    crops = {
        "random_resized": lambda: [_RandomResizedCrop(preprocessing, crop_scale)],
        "padded": lambda: [_Whole(preprocessing), v2.RandomCrop(preprocessing.resolution, padding=crop_padding)],
        "none": lambda: [_CentreCrop(preprocessing)],
    }
    steps: list[Callable] = crops[crop]()
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if auto_augment != "none":
        steps.append(_OnPillow(policies[auto_augment](interpolation=mode)))
    if random_erasing:
        steps.append(v2.RandomErasing(random_erasing, value=[round(255 * m) for m in preprocessing.mean]))
    return v2.Compose(steps)


def train_transform(preprocessing: Preprocessing, **arguments: Any) -> Transform:
    """The transform of training, normalisation included: an image to float32 (channels, resolution, resolution).

    The arguments are those of `train_pixels`.
    """
    return v2.Compose([train_pixels(preprocessing, **arguments), preprocessing.normalize])


def resized_part(image: AnyImage, box: Box, size: tuple[int, int], channels: int, interpolation: str) -> Tensor:
    """A part of an image at another size, antialiased; an image file is decoded for no more than that needs.

    Returns:
        uint8 (channels, *size).
    """
    top, left, height, width = box
    if isinstance(image, EncodedImage):
        full_width, full_height = image.size
        pixels = image.pixels(channels, min(height / size[0], width / size[1]))
        if pixels.shape[-1] != full_width:  # decoded at a smaller scale
            by = pixels.shape[-1] / full_width, pixels.shape[-2] / full_height
            left, width = round(left * by[0]), max(1, round(width * by[0]))
            top, height = round(top * by[1]), max(1, round(height * by[1]))
    else:
        pixels = pixels_of(image, channels)
    part = pixels[None, :, top : top + height, left : left + width]
    if part.shape[-2:] != size:
        mode = _MODES[interpolation]
        part = F.interpolate(part, size=size, mode=mode, antialias=interpolation != "nearest")
    return part[0]


def _whole_box(image: AnyImage) -> Box:
    width, height = image.size
    return 0, 0, height, width


class _CentreCrop:
    """Resize the short side, crop the centre."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: AnyImage) -> Tensor:
        p = self.preprocessing
        width, height = image.size
        short = min(width, height)
        high, wide = (p.resize if side == short else int(p.resize * side / short) for side in (height, width))
        pixels = resized_part(image, _whole_box(image), (high, wide), p.channels, p.interpolation)
        top, left = (round((side - p.resolution) / 2) for side in (high, wide))
        return pixels[:, top : top + p.resolution, left : left + p.resolution]


class _RandomResizedCrop:
    """A random part of the image, scaled to the input's size."""

    def __init__(self, preprocessing: Preprocessing, scale: Sequence[float]) -> None:
        self.preprocessing, self.scale = preprocessing, tuple(scale)

    def __call__(self, image: AnyImage) -> Tensor:
        p = self.preprocessing
        width, height = image.size
        shape = torch.empty(1).expand(1, height, width)  # all that torchvision wants to know of the image
        box = RandomResizedCrop.get_params(shape, list(self.scale), list(_RATIOS))
        return resized_part(image, box, (p.resolution, p.resolution), p.channels, p.interpolation)


class _Whole:
    """The whole image, scaled to the input's size whatever its shape."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: AnyImage) -> Tensor:
        p = self.preprocessing
        return resized_part(image, _whole_box(image), (p.resolution,) * 2, p.channels, p.interpolation)


class _OnPillow:
    """A transform on Pillow's images, for which the augmentation policies were made."""

    def __init__(self, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.transform = transform

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels_of(self.transform(to_pil_image(pixels)), len(pixels))
