"""Norm layers by detectron2's names, for the blocks of this project."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from torch import Tensor, nn

from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.sync_batchnorm import CpuSyncBatchNorm2d

Norm = str | Callable[[int], nn.Module]

NORMS = ("BN", "SyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN")

EQUAL_NORMS = (FrozenBatchNorm2d, NaiveSyncBatchNorm)
"""detectron2's norms whose buffers stay equal in all processes during training."""


def norm_layer(norm: Norm, device: str = "cuda") -> Callable[[int], nn.Module]:
    """Return a function that builds the norm layer of a number of channels; a callable `norm` is returned as is.

    "GN" has 32 groups, or the greatest common divisor of 32 and the number of channels. On CPUs, "SyncBN" is
    `CpuSyncBatchNorm2d`, because torch's works on GPUs only.
    """
    if callable(norm):
        return norm
    if norm not in NORMS:
        raise UsageError(f"unknown norm {norm!r}: {suggest(str(norm), NORMS)}")
    if norm == "SyncBN" and device.startswith("cpu"):
        return CpuSyncBatchNorm2d
    if norm == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    return lambda channels: get_norm(norm, channels)


@contextlib.contextmanager
def explain_batchnorm_error(x: Tensor) -> Iterator[None]:
    """Replace torch's error about a single value per channel with advice; `x` (N, C, H, W) is the input."""
    try:
        yield
    except ValueError as error:
        # The text of torch's error and of `CpuSyncBatchNorm2d`'s
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {len(x)} of size {x.shape[2]} x {x.shape[3]} leaves BatchNorm one value per channel: train "
            "with larger images (INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN), with more images per process "
            "(SOLVER.IMS_PER_BATCH), or with MODEL.FBNETV3.NORM GN"
        ) from None
