"""Fold a BatchNorm into the convolution before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def fold_batchnorm(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight and bias of a convolution equivalent to `conv` followed by `norm` in eval mode.

    `norm` is torch's BatchNorm, detectron2's frozen one, any other norm with the same tensors, or None for no norm.
    Return None if the norm has no running statistics, so that it cannot be folded.
    """
    return fold_batchnorm_with_gradient(conv, norm)


def fold_batchnorm_with_gradient(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return what `fold_batchnorm` does, with gradients to the parameters of both modules."""
    if norm is None:
        return conv.weight, conv.bias
    if getattr(norm, "running_mean", None) is None:
        return None
    # y = gamma * (conv(x) + conv_bias - mean) / sqrt(var + eps) + beta
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    scale = gamma / (norm.running_var + norm.eps).sqrt()
    shift = beta - norm.running_mean * scale
    weight = conv.weight * scale.reshape(-1, 1, 1, 1)
    return weight, shift if conv.bias is None else conv.bias * scale + shift
