"""Prepare a network for export: fold BatchNorm and replace what exporters cannot represent."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.modeling.batchnorm_folding import fold_batchnorm


class GlobalMean(nn.Module):
    """A global average pool written as a mean, which no exporter decomposes into smaller pools."""

    def forward(self, x: Tensor) -> Tensor:
        """Average (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class _DecomposedHardsigmoid(nn.Module):
    """A hard sigmoid in operators that XNNPACK has, so that its graph is not split at each gate."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([3.0]))
        self.register_buffer("scale", torch.tensor([1 / 6]))

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(x + self.shift, 0.0, 6.0) * self.scale


def prepare_for_export(model: nn.Module, decompose_hard_sigmoid: bool = False) -> nn.Module:
    """Copy a network for inference only; its outputs stay the same up to rounding.

    Every BatchNorm that follows a convolution in the same `nn.Sequential` is folded into it, global average pools
    become means, and in-place operators and gradients are disabled. Optionally, each hard sigmoid becomes an addition,
    a clamp and a product.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    # ExecuTorch fails on some channels-last weights
    model = model.to(memory_format=torch.contiguous_format)
    # Iterate over a list, because the loop replaces modules
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batchnorms(module)
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
            elif decompose_hard_sigmoid and isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _DecomposedHardsigmoid())
    return model


def _fold_batchnorms(layers: nn.Sequential) -> None:
    for index, (conv, norm) in enumerate(pairwise(layers)):
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if folded := fold_batchnorm(conv, norm):
            weight, bias = folded
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(cast("Tensor", bias), requires_grad=False)
            layers[index + 1] = nn.Identity()
