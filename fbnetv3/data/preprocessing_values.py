"""Preprocessing as plain values, in exported folders and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fbnetv3.data.transforms import INTERPOLATIONS, Preprocessing
from fbnetv3.utils.checks import check_choice, check_int

RENDERING_STEP = (
    "decode to 8 bits as a viewer shows it: turned by the EXIF orientation, on white where transparent"
)
"""The first step of the preprocessing of gray or RGB, in words."""
_MAX_CHANNELS = 1024
_MAX_SIDE = 16_384  # pixels


_CHANNEL_NAMES = {1: "gray", 3: "RGB", 4: "RGBA"}


def preprocessing_to_dict(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing as plain values, for JSON and checkpoints, including the steps in words."""
    return {
        **asdict(preprocessing),
        "channels": _CHANNEL_NAMES.get(preprocessing.channels, f"{preprocessing.channels} channels"),
        "steps": [
            _rendering_step(preprocessing.channels),
            f"resize the short side to {preprocessing.resize} pixels ({preprocessing.interpolation}, antialiased)",
            f"crop the center, {preprocessing.resolution} x {preprocessing.resolution}",
            "divide by 255, subtract mean, divide by std, for each channel",
            "order: image, channel, row, column",
        ],
    }


def _rendering_step(channels: int) -> str:
    if channels in (1, 3):
        return RENDERING_STEP
    source = (
        "with the alpha channel" if channels == 4 else "one channel per gray page of a TIFF, or of an array"
    )
    return f"decode to 8 bits: {source}, turned by the EXIF orientation"


def preprocessing_from_dict(fields: Mapping[str, Any]) -> Preprocessing:
    """Build the preprocessing from the result of `preprocessing_to_dict`. Raise ValueError for an invalid value."""
    resolution = int(fields["resolution"])
    resize = int(fields["resize"])
    mean = tuple(map(float, fields["mean"]))
    std = tuple(map(float, fields["std"]))
    # Exported folders and checkpoints may come from strangers
    if not 1 <= len(mean) <= _MAX_CHANNELS or not all(map(math.isfinite, mean)):
        raise ValueError(f"mean: {mean} must be finite numbers, one per channel")
    if len(std) != len(mean) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: {std} must be positive, one number per channel")
    check_int(resize, "resize", 1, _MAX_SIDE)
    check_int(resolution, "resolution", 1, resize)
    check_choice(fields["interpolation"], "interpolation", INTERPOLATIONS)
    return Preprocessing(resolution, resize, mean, std, fields["interpolation"])
