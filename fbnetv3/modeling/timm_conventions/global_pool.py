"""Global pooling by timm's names: average, maximum, both, or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.utils.checks import check_choice


class AvgMaxPool(nn.Module):
    """The mean of average and maximum: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1)."""
        return 0.5 * (F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1))


class ConcatAvgMaxPool(nn.Module):
    """Average and maximum, concatenated: (N, C, H, W) to (N, 2 * C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 2 * C, 1, 1)."""
        return torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1)


_POOLS: dict[str, Callable[[], nn.Module]] = {
    "avg": partial(nn.AdaptiveAvgPool2d, 1),
    "max": partial(nn.AdaptiveMaxPool2d, 1),
    "avgmax": AvgMaxPool,
    "catavgmax": ConcatAvgMaxPool,
    "": nn.Identity,
}


def build_global_pool(name: str) -> nn.Module:
    """Return the pooling of that name: "avg", "max", "avgmax", "catavgmax", or "" for none."""
    check_choice(name, "global_pool", tuple(_POOLS))
    return _POOLS[name]()


def pooled_width(name: str) -> int:
    """Return the ratio of channels after and before a pooling: 2 for "catavgmax", else 1."""
    return 2 if name == "catavgmax" else 1
