"""Norms by the names that detectron2's users know, for blocks of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from detectron2.layers import get_norm
from torch import Tensor, nn

from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.sync_batchnorm import CpuSyncBatchNorm2d

T = TypeVar("T")
Norm = str | Callable[[int], nn.Module]

NORMS = ("BN", "SyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")


def norm_layer(norm: Norm, device: str = "cuda") -> Callable[[int], nn.Module]:
    """What makes the norm of a number of channels.

    Args:
        norm: one of `NORMS`, or a callable, which is returned as it is. "GN" has 32 groups, or fewer where 32 do not
            divide the channels.
        device: where the network will be; "SyncBN" on CPUs is one of ours, since torch's knows GPUs alone.

    Raises:
        UsageError: a name that is none of them.
    """
    if callable(norm):
        return norm
    if norm not in NORMS:
        raise UsageError(f"{norm!r} is no norm: {suggest(str(norm), NORMS)}")
    if norm == "SyncBN" and device.startswith("cpu"):
        return CpuSyncBatchNorm2d
    if norm == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    return lambda channels: get_norm(norm, channels)


def explained(forward: Callable[[Tensor], T], x: Tensor) -> T:
    """What a part of a detector makes of its input in training, with an error that says what BatchNorm lacks.

    Args:
        forward: takes the input.
        x: (N, C, H, W).

    Raises:
        UsageError: a map of the part has one place, and N is 1: BatchNorm has nothing to normalise by.
    """
    try:
        return forward(x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {len(x)} of {x.shape[2]} x {x.shape[3]} leaves BatchNorm one value a channel: train with "
            "larger images (INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN) or more a process (SOLVER.IMS_PER_BATCH), or set "
            "MODEL.FBNETV3.NORM to GN"
        ) from None
