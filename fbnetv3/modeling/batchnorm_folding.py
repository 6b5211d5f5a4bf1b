"""Fold a BatchNorm into the convolution before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def fold_batchnorm(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None] | None:
    """Compute the weight and bias of one convolution that equals a convolution followed by a BatchNorm.

    Args:
        conv: the convolution.
        norm: a norm in eval mode: torch's BatchNorm, detectron2's frozen one or any other with the same tensors; None
            for no norm.

    Returns:
        The folded weight (out_channels, in_channels / groups, kH, kW) and bias (out_channels,); None if the norm
        cannot be folded because it has no running statistics.
    """
    if norm is None:
        return conv.weight, conv.bias
    batchnorm: Any = norm
    if getattr(norm, "running_mean", None) is None:
        return None
    # y = gamma * (conv(x) + conv_bias - mean) / sqrt(var + eps) + beta
    gamma = torch.ones_like(batchnorm.running_mean) if batchnorm.weight is None else batchnorm.weight
    beta = torch.zeros_like(batchnorm.running_mean) if batchnorm.bias is None else batchnorm.bias
    scale = gamma / (batchnorm.running_var + batchnorm.eps).sqrt()
    shift = beta - batchnorm.running_mean * scale
    weight = conv.weight * scale.reshape(-1, 1, 1, 1)
    return weight, shift if conv.bias is None else conv.bias * scale + shift
