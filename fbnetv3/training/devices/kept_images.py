"""Whether a run keeps its images in the device's memory (DATA.ON_DEVICE), and the sizes that they have there."""

from __future__ import annotations

from dataclasses import replace

import torch
from fvcore.common.config import CfgNode

from fbnetv3.data import Preprocessing
from fbnetv3.data.batches.batch_augmentation import find_unsupported
from fbnetv3.errors import UsageError

# More images are read in every epoch even if a GPU could keep them (DATA.ON_DEVICE auto)
_MAX_BYTES_ON_DEVICE = 2 * 2**30


def is_kept_on_device(
    cfg: CfgNode, device: torch.device, preprocessing: Preprocessing, side: int, num_images: int
) -> bool:
    """Return whether a run keeps its images on the device and augments them there, as DATA.ON_DEVICE says."""
    setting = cfg.DATA.ON_DEVICE
    if setting == "never" or (setting == "auto" and (device.type != "cuda" or cfg.DISTILL.CACHE)):
        return False
    unsupported = find_unsupported(
        crop=cfg.INPUT.CROP,
        color_jitter=cfg.INPUT.COLOR_JITTER,
        auto_augment=cfg.INPUT.AUTO_AUGMENT,
        random_erasing=cfg.INPUT.RANDOM_ERASING,
    )
    if setting == "always" and unsupported:
        raise UsageError(
            f"DATA.ON_DEVICE always does not work with {unsupported}: it pads, crops and flips; set it to never"
        )
    padded_side = side + 2 * crop_padding(cfg, preprocessing, side)
    num_bytes = num_images * preprocessing.channels * padded_side**2
    return setting == "always" or (not unsupported and num_bytes <= _MAX_BYTES_ON_DEVICE)


def resized(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """Return the preprocessing to images of `side` pixels."""
    return replace(
        preprocessing,
        resolution=side,
        resize=round(preprocessing.resize * side / preprocessing.resolution),
    )


def crop_padding(cfg: CfgNode, preprocessing: Preprocessing, side: int) -> int:
    """Return the pixels that the crop adds on each side of images of `side` pixels."""
    # Pixels in the config refer to the student's resolution
    return (
        round(cfg.INPUT.CROP_PADDING * side / preprocessing.resolution) if cfg.INPUT.CROP == "padded" else 0
    )
