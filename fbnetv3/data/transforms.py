"""From a PIL image to the network's input, in training and in evaluation (torchvision's transforms v2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from fbnetv3.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The transform: a PIL image to float32 (channels, resolution, resolution)."""
        return v2.Compose(
            [
                _Mode(self.channels),
                v2.Resize(self.resize, InterpolationMode(self.interpolation)),
                v2.CenterCrop(self.resolution),
                *_to_input(self.mean, self.std),
            ]
        )


def train_transform(
    preprocessing: Preprocessing,
    *,
    crop: str,
    crop_scale: Sequence[float],
    crop_padding: int,
    flip: bool,
    auto_augment: str = "none",
    random_erasing: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """The transform of training: a PIL image to float32 (channels, resolution, resolution).

    Args:
        preprocessing: resolution and normalisation.
        crop: "random_resized", "padded" or "none".
        crop_scale: smallest and largest share of the area for "random_resized".
        crop_padding: pixels on each side for "padded".
        flip: mirror half of the images.
        auto_augment: "autoaugment" (ImageNet's policy), "randaugment", or "none".
        random_erasing: share of the images from which a rectangle is erased.

    Raises:
        UsageError: more padding than image.
    """
    if crop == "padded" and crop_padding > preprocessing.resolution:
        raise UsageError(
            f"INPUT.CROP_PADDING {crop_padding} is more than the input of {preprocessing.resolution} pixels"
        )
    side, mode = preprocessing.resolution, InterpolationMode(preprocessing.interpolation)
    crops = {
        "random_resized": [v2.RandomResizedCrop(side, scale=tuple(crop_scale), interpolation=mode)],
        "padded": [v2.Resize((side, side), mode), v2.RandomCrop(side, padding=crop_padding)],
        "none": [v2.Resize(preprocessing.resize, mode), v2.CenterCrop(side)],
    }
    policies = {
        "none": [],
        "autoaugment": [v2.AutoAugment(interpolation=mode)],
        "randaugment": [v2.RandAugment(interpolation=mode)],
    }
    return v2.Compose(
        [
            _Mode(preprocessing.channels),
            *crops[crop],
            *([v2.RandomHorizontalFlip()] if flip else []),
            *policies[auto_augment],
            *_to_input(preprocessing.mean, preprocessing.std),
            *([v2.RandomErasing(random_erasing)] if random_erasing else []),
        ]
    )


class _Mode:
    """To RGB or grey. Palette and alpha are resolved by Pillow; grey of more than 8 bits is scaled from 16."""

    def __init__(self, channels: int) -> None:
        self.mode = {1: "L", 3: "RGB"}[channels]

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
        elif image.mode in ("La", "LAB"):
            image = image.convert("LA" if image.mode == "La" else "RGB")
        return image if image.mode == self.mode else image.convert(self.mode)


def _to_input(mean: Sequence[float], std: Sequence[float]) -> list[Callable]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()]
