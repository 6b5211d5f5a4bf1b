"""Config keys of the augmentation: defaults, which turn everything off, and checks of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from fbnetv3.errors import UsageError
from fbnetv3.utils.checks import is_int, is_number

_SECTION = "INPUT.AUGMENTATION"
_RANGES = ("LARGE_SCALE_JITTER", "BRIGHTNESS", "CONTRAST", "SATURATION", "MOSAIC_SCALE")
_PROBABILITIES = ("PHOTOMETRIC_DISTORTION", "MOSAIC", "COPY_PASTE", "MIN_VISIBLE")
_COLOR_KEYS = ("SATURATION", "HUE", "LIGHTING", "PHOTOMETRIC_DISTORTION")
_MAX_HUE = 0.5
_CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")


def add_augmentation_config(cfg: CfgNode) -> None:
    """Add the section `INPUT.AUGMENTATION` to a detectron2 config. The defaults leave training as it is without it."""
    cfg.INPUT.AUGMENTATION = section = CfgNode()
    # Large-scale jitter: range of scales, such as [0.1, 2.0], at which an image is fitted into LARGE_SCALE_JITTER_SIZE
    # before a random crop of this size. Replaces INPUT.MIN_SIZE_TRAIN. [] for none.
    section.LARGE_SCALE_JITTER = []
    # Height and width in pixels; [] for a square of INPUT.MAX_SIZE_TRAIN
    section.LARGE_SCALE_JITTER_SIZE = []
    # Ranges of random factors, such as [0.8, 1.2]: brightness, contrast, and saturation; [] for none
    section.BRIGHTNESS = []
    section.CONTRAST = []
    section.SATURATION = []
    # Largest rotation of the hue, as a fraction of the color circle, at most 0.5
    section.HUE = 0.0
    # AlexNet's color noise: standard deviation, in gray levels; AlexNet's is 25.5
    section.LIGHTING = 0.0
    # Probability of SSD's distortion: brightness, contrast, saturation and hue, each at random, and permuted channels
    section.PHOTOMETRIC_DISTORTION = 0.0
    # Probability of joining an image with three random others. The mosaic has the size of the first image, or that of
    # the large-scale jitter.
    section.MOSAIC = 0.0
    # Range of scales of a mosaic's images; at 0.5, images of the mosaic's size fit whole if they meet in its center
    section.MOSAIC_SCALE = [0.5, 1.0]
    # Probability of pasting a random half of another image's objects, cut out along their masks
    section.COPY_PASTE = 0.0
    # Objects of which crops, mosaics and pasted objects leave a smaller fraction visible are dropped
    section.MIN_VISIBLE = 0.1


def check_augmentation(cfg: CfgNode) -> None:
    """Require valid values in `INPUT.AUGMENTATION` and `INPUT.CROP`."""
    section = cfg.INPUT.AUGMENTATION
    requirements = {
        **dict.fromkeys(
            _RANGES, (_is_range, "[low, high], positive numbers in this order, or [] for none")
        ),
        **dict.fromkeys(_PROBABILITIES, (_is_fraction, "in [0, 1]")),
        "MOSAIC_SCALE": (
            lambda value: value and _is_range(value),
            "[low, high], positive numbers in this order",
        ),
        "HUE": (lambda value: is_number(value, 0, _MAX_HUE), f"in [0, {_MAX_HUE}]"),
        "LIGHTING": (lambda value: is_number(value, 0), "at least 0"),
        "LARGE_SCALE_JITTER_SIZE": (_is_size, "[height, width] in pixels, or []"),
    }
    for key, (is_valid, requirement) in requirements.items():
        if not is_valid(section[key]):
            raise UsageError(f"{_SECTION}.{key} {section[key]!r} must be {requirement}")
    for key in _COLOR_KEYS:
        if section[key] and cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise UsageError(f"{_SECTION}.{key} needs INPUT.FORMAT BGR or RGB, not {cfg.INPUT.FORMAT}")
    _check_crop(cfg.INPUT.CROP)


def combines_images(cfg: CfgNode) -> bool:
    """Return whether a training input may be made of several images."""
    section = cfg.INPUT.get("AUGMENTATION", {})
    return bool(section.get("MOSAIC") or section.get("COPY_PASTE"))


def cuts_objects(cfg: CfgNode) -> bool:
    """Return whether the augmentation may cut off or cover a part of an object."""
    section = cfg.INPUT.get("AUGMENTATION", {})
    return bool(cfg.INPUT.CROP.ENABLED or section.get("LARGE_SCALE_JITTER") or combines_images(cfg))


def _is_range(value: Sequence[Any]) -> bool:
    if not value:
        return True
    return len(value) == 2 and all(is_number(number, 0) for number in value) and 0 < value[0] <= value[1]


def _is_fraction(value: Any) -> bool:
    return is_number(value, 0, 1)


def _is_size(value: Sequence[Any]) -> bool:
    return not value or (len(value) == 2 and all(is_int(side, 1) for side in value))


def _check_crop(crop: CfgNode) -> None:
    if not crop.ENABLED:
        return
    if crop.TYPE not in _CROP_TYPES:
        raise UsageError(f"INPUT.CROP.TYPE {crop.TYPE!r} must be one of {', '.join(_CROP_TYPES)}")
    relative = crop.TYPE.startswith("relative")
    valid = len(crop.SIZE) == 2 and all(
        is_number(side, 0, 1) and side > 0 if relative else is_int(side, 1) for side in crop.SIZE
    )
    if not valid or (crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]):
        unit = "fractions in (0, 1]" if relative else "numbers of pixels"
        order = ", the smaller first" if crop.TYPE == "absolute_range" else ""
        raise UsageError(
            f"INPUT.CROP.SIZE {list(crop.SIZE)} must be two {unit}{order}, for INPUT.CROP.TYPE {crop.TYPE}"
        )
