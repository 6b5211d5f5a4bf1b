"""Preprocessing and augmentation: from an image to the network's input.

All steps but the last work on uint8 tensors, which torch resizes quickly. torchvision's transforms v2 draw the random
crops and augment. The last step, normalization, returns floats, for a single image or a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from fbnetv3.data.image_io import ArrayImage, EncodedImage
from fbnetv3.data.image_rendering import pillow_to_tensor, render_image
from fbnetv3.errors import UsageError
from fbnetv3.registry import Registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

AnyImage = Image.Image | EncodedImage
Transform = Callable[[AnyImage], Tensor]
CropBox = tuple[int, int, int, int]  # top, left, height and width in pixels

CROPS = Registry("crop (INPUT.CROP)")
"""Builders of training crops, called with the keywords `preprocessing` (a `Preprocessing`), `scale` (INPUT.CROP_SCALE)
and `padding` (INPUT.CROP_PADDING in pixels). Each returns a transform from an upright image, an `EncodedImage` or a
Pillow image of mode L or RGB (with one or three channels), to uint8 (channels, resolution, resolution)."""

AUGMENTATIONS = Registry("augmentation (INPUT.AUTO_AUGMENT)")
"""Builders of augmentations, called with the keyword `preprocessing`. Each returns a transform of uint8 pixels
(channels, resolution, resolution)."""

_TORCH_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}
INTERPOLATIONS = tuple(_TORCH_MODES)
_ASPECT_RATIOS = [3 / 4, 4 / 3]
_MAX_ASPECT_RATIO = 8  # of images that are resized as a whole before the center is cropped
_MAX_PIXELS_BETWEEN = 2**24  # after the width is resized and before the height is


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing for evaluation: resize the short side, crop the center, scale to [0, 1], normalize."""

    resolution: int
    """Side of the crop in pixels."""
    resize: int
    """Short side before the crop in pixels."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel in [0, 1]: of gray, RGB, RGBA or any others."""
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    """One of `INTERPOLATIONS`."""

    @property
    def channels(self) -> int:
        """Number of input channels: 3 for RGB, 1 for gray, 4 for RGBA, or others; see `pillow_to_tensor`."""
        return len(self.mean)

    def transform(self, normalize: bool = True) -> Transform:
        """Build the transform from an image to float32 (channels, resolution, resolution); uint8 if not normalized."""
        return v2.Compose([self.crop_center, self.normalize]) if normalize else self.crop_center

    def crop_center(self, image: AnyImage) -> Tensor:
        """Resize the short side, then crop the center: uint8 (channels, resolution, resolution)."""
        image = _rendered(self.channels, image)
        width, height = image.size
        short_side = min(width, height)
        top, height, new_height, crop_top = self._plan_side(height, short_side)
        left, width, new_width, crop_left = self._plan_side(width, short_side)
        box = (top, left, height, width)
        pixels = crop_and_resize(image, box, (new_height, new_width), self.channels, self.interpolation)
        return pixels[:, crop_top : crop_top + self.resolution, crop_left : crop_left + self.resolution]

    def _plan_side(self, side: int, short_side: int) -> tuple[int, int, int, int]:
        """Plan how to resize one side so that the short side becomes `resize`, and to crop its center.

        Returns:
            Start and length of the part of the side that is resized, the new length of this part, and the start of the
            crop in it.
        """
        new_side = self.resize if side == short_side else int(self.resize * side / short_side)
        crop_start = round((new_side - self.resolution) / 2)
        if side <= _MAX_ASPECT_RATIO * short_side:
            return 0, side, new_side, crop_start
        # Of a narrow image, which could be huge after resizing, take only the squares around the crop, with two more
        # at each end for the filter. Whole squares keep the pixels where they were.
        first = max(0, crop_start // self.resize - 2)
        last = min(side // short_side, (crop_start + self.resolution) // self.resize + 3)
        num_squares = last - first
        return (
            first * short_side,
            num_squares * short_side,
            num_squares * self.resize,
            crop_start - first * self.resize,
        )

    def resize_to_square(self, image: AnyImage, box: CropBox | None = None) -> Tensor:
        """Resize a part of the image, by default all of it, to uint8 (channels, resolution, resolution).

        The box is a part of the upright image.
        """
        image = _rendered(self.channels, image)
        width, height = image.size
        size = (self.resolution, self.resolution)
        return crop_and_resize(image, box or (0, 0, height, width), size, self.channels, self.interpolation)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize an image or a batch: uint8 (..., channels, H, W) to float32."""
        # (x / 255 - mean) / std as one multiplication and one subtraction, both in place
        scale, shift = _scale_and_shift(self.mean, self.std, pixels.device)
        return pixels.to(torch.float32).mul_(scale).sub_(shift)


@lru_cache(maxsize=32)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return 1 / (255 std) and mean / std, each (channels, 1, 1).

    They are copied to a device only once: a copy from ordinary host memory waits for all that the device computes.
    """
    scale = [1 / (255 * s) for s in std]
    shift = [m / s for m, s in zip(mean, std, strict=True)]
    # Usable in any mode, whichever the first call has
    with torch.inference_mode(False):
        factors = torch.tensor([scale, shift], device=device)[..., None, None]
    return factors[0], factors[1]


def evaluation_preprocessing(preprocessing: Preprocessing, views: str) -> Preprocessing:
    """Return the preprocessing that leaves room for the crops of test-time augmentation: all of the short side."""
    if views in ("five_crop", "ten_crop"):
        return replace(preprocessing, resolution=preprocessing.resize)
    return preprocessing


def train_transform(
    preprocessing: Preprocessing,
    *,
    crop: str,
    crop_scale: Sequence[float],
    crop_padding: int,
    flip: bool,
    color_jitter: float = 0.0,
    auto_augment: str = "none",
    random_erasing: float = 0.0,
    normalize: bool = True,
) -> Transform:
    """Build the transform for training.

    Args:
        preprocessing: resolution, interpolation and normalization.
        crop: a name in `CROPS`: "random_resized", "padded", "none" or a user's own.
        crop_scale: smallest and largest fraction of the area for "random_resized".
        crop_padding: pixels on each side for "padded".
        flip: whether to mirror half of the images.
        color_jitter: largest relative change of brightness, contrast and saturation.
        auto_augment: a name in `AUGMENTATIONS`: "autoaugment" (the policy for ImageNet), "randaugment", "none" or a
            user's own.
        random_erasing: probability of filling a random rectangle with the mean.
        normalize: whether to apply the last step.

    Returns:
        A function from an image to float32 (channels, resolution, resolution), or uint8 without `normalize`.

    Raises:
        UnknownNameError: no crop or augmentation of this name is registered.
        UsageError: the padding is larger than the resolution, or an augmentation of colors meets channels that are
            neither gray nor RGB.
    """
    make_crop = CROPS.get(crop)
    make_augmentation = AUGMENTATIONS.get(auto_augment)
    steps: list[Callable] = [
        partial(_rendered, preprocessing.channels),  # crops see the size of the upright image
        make_crop(preprocessing=preprocessing, scale=tuple(crop_scale), padding=crop_padding),
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        _require_colors(preprocessing, "INPUT.COLOR_JITTER")
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps.append(make_augmentation(preprocessing=preprocessing))
    # Fill with the mean, which normalization maps to 0
    if random_erasing:
        fill = [round(255 * m) for m in preprocessing.mean]
        steps.append(v2.RandomErasing(random_erasing, value=fill))
    if normalize:
        steps.append(preprocessing.normalize)
    return v2.Compose(steps)


@CROPS.register(name="random_resized")
def random_resized_crop(*, preprocessing: Preprocessing, scale: Sequence[float], padding: int) -> Transform:
    """Crop a random part of the image and scale it to the resolution."""
    return partial(_crop_random_part, preprocessing, list(scale))


def _crop_random_part(preprocessing: Preprocessing, scale: list[float], image: AnyImage) -> Tensor:
    # torchvision reads only the shape of the image
    width, height = image.size
    shape_only = torch.empty(1).expand(1, height, width)
    box = RandomResizedCrop.get_params(shape_only, scale, _ASPECT_RATIOS)
    return preprocessing.resize_to_square(image, box)


@CROPS.register(name="padded")
def padded_crop(*, preprocessing: Preprocessing, scale: Sequence[float], padding: int) -> Transform:
    """Scale the image to the resolution, pad it, and crop a random square of the resolution."""
    resolution = preprocessing.resolution
    if padding > resolution:
        raise UsageError(
            f"INPUT.CROP_PADDING {padding} is larger than the {resolution}-pixel input; lower it"
        )
    return v2.Compose([preprocessing.resize_to_square, v2.RandomCrop(resolution, padding=padding)])


@CROPS.register(name="none")
def center_crop(*, preprocessing: Preprocessing, scale: Sequence[float], padding: int) -> Transform:
    """Crop the center, as in evaluation."""
    return preprocessing.crop_center


@AUGMENTATIONS.register(name="none")
def no_augmentation(*, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Return the pixels unchanged."""
    return nn.Identity()


def _require_colors(preprocessing: Preprocessing, key: str) -> None:
    """Require gray or RGB, which changes of brightness, contrast and so on are defined for."""
    if preprocessing.channels not in (1, 3):
        raise UsageError(
            f"{key} needs images with 1 or 3 channels, not MODEL.IN_CHANS {preprocessing.channels}"
        )


def _augment_with_pillow(policy: Callable, *, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
    """Apply an augmentation policy with its defaults to Pillow images, for which the policies were designed."""
    _require_colors(preprocessing, "INPUT.AUTO_AUGMENT")
    augment = policy(interpolation=InterpolationMode(preprocessing.interpolation))
    to_tensor = partial(pillow_to_tensor, channels=preprocessing.channels)
    return v2.Compose([v2.ToPILImage(), augment, to_tensor])


AUGMENTATIONS.register(partial(_augment_with_pillow, v2.AutoAugment), name="autoaugment")
AUGMENTATIONS.register(partial(_augment_with_pillow, v2.RandAugment), name="randaugment")


def _rendered(channels: int, image: AnyImage) -> AnyImage:
    """Render a Pillow image; an `EncodedImage` is rendered when it is decoded."""
    if not isinstance(image, Image.Image):
        return image
    if channels in (1, 3):
        return render_image(image)
    return ArrayImage(pillow_to_tensor(image, channels).permute(1, 2, 0).numpy())


def crop_and_resize(
    image: AnyImage, box: CropBox, size: tuple[int, int], channels: int, interpolation: str
) -> Tensor:
    """Resize a part of an image with antialiasing to uint8 (channels, *size), where size is height and width.

    Image files are decoded only as large as needed.
    """
    top, left, height, width = box
    if isinstance(image, EncodedImage):
        full_width, full_height = image.size
        pixels = image.decode(channels, downscale=min(height / size[0], width / size[1]))
        # Scale the box if the image was decoded at a smaller scale
        if pixels.shape[-1] != full_width:
            scale_x = pixels.shape[-1] / full_width
            scale_y = pixels.shape[-2] / full_height
            left = round(left * scale_x)
            width = max(1, round(width * scale_x))
            top = round(top * scale_y)
            height = max(1, round(height * scale_y))
    else:
        pixels = pillow_to_tensor(image, channels)
    # `interpolate` expects a batch; a part of the right size is not resized
    part = pixels[None, :, top : top + height, left : left + width]
    resize = partial(F.interpolate, mode=_TORCH_MODES[interpolation], antialias=interpolation != "nearest")
    # torch resizes the width first, which makes a tall and narrow image huge
    if part.shape[-2] > size[0] and part.shape[-2] * size[1] > _MAX_PIXELS_BETWEEN:
        part = resize(part, size=(size[0], part.shape[-1]))
    if part.shape[-2:] != size:
        part = resize(part, size=size)
    return part[0]
