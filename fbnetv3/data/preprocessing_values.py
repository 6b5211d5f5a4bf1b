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
"""The first step of every preprocessing, in words."""
_MAX_SIDE = 16_384  # pixels


def preprocessing_to_dict(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing as plain values, for JSON and checkpoints, including the steps in words."""
    return {
        **asdict(preprocessing),
        "channels": {1: "gray", 3: "RGB"}[preprocessing.channels],
        "steps": [
            RENDERING_STEP,
            f"resize the short side to {preprocessing.resize} pixels ({preprocessing.interpolation}, antialiased)",
            f"crop the center, {preprocessing.resolution} x {preprocessing.resolution}",
            "divide by 255, subtract mean, divide by std, for each channel",
            "order: image, channel, row, column",
        ],
    }


def preprocessing_from_dict(fields: Mapping[str, Any]) -> Preprocessing:
    """Build the preprocessing from the result of `preprocessing_to_dict`. Raise ValueError for an invalid value."""
    resolution = int(fields["resolution"])
    resize = int(fields["resize"])
    mean = tuple(map(float, fields["mean"]))
    std = tuple(map(float, fields["std"]))
    # Exported folders and checkpoints may come from strangers
    if len(mean) not in (1, 3) or not all(map(math.isfinite, mean)):
        raise ValueError(f"mean: {mean} must be one or three finite numbers")
    if len(std) != len(mean) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"std: {std} must be positive, one number per channel")
    check_int(resize, "resize", 1, _MAX_SIDE)
    check_int(resolution, "resolution", 1, resize)
    check_choice(fields["interpolation"], "interpolation", INTERPOLATIONS)
    return Preprocessing(resolution, resize, mean, std, fields["interpolation"])
