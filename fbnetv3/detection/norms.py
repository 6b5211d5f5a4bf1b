"""Norms by the names that detectron2's users know, for blocks of ours."""

from __future__ import annotations

import math
from collections.abc import Callable

from detectron2.layers import get_norm
from torch import nn

from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.sync_norm import CpuSyncBatchNorm2d

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
