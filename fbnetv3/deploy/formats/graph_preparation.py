"""Prepare a network for export: fold BatchNorm, replace what exporters cannot represent, trace."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.deploy.formats.export_errors import as_export_errors
from fbnetv3.modeling.batchnorm_folding import fold_batchnorm


class GlobalMean(nn.Module):
    """A global average pool written as a mean, which no exporter decomposes into smaller pools."""

    def forward(self, x: Tensor) -> Tensor:
        """Average (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class DecomposedHardsigmoid(nn.Module):
    """A hard sigmoid in operators that XNNPACK has, so that its graph is not split at each gate."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([3.0]))
        self.register_buffer("scale", torch.tensor([1 / 6]))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the hard sigmoid to a tensor of any shape."""
        return F.hardtanh(x + self.shift, 0.0, 6.0) * self.scale


def prepare_for_export(model: nn.Module, decompose_hard_sigmoid: bool = False) -> nn.Module:
    """Copy a network for inference only; its outputs stay the same up to rounding.

    Every BatchNorm directly after a convolution is folded into it, global average pools become means, and in-place
    operators and gradients are switched off.

    Args:
        model: the network; it is not changed.
        decompose_hard_sigmoid: replace hard sigmoids with an addition, a clamp and a product.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    model = model.to(memory_format=torch.contiguous_format)  # ExecuTorch fails on some channels-last weights
    # Iterate over a list, because modules are replaced on the way
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batchnorms(module)
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
            elif decompose_hard_sigmoid and isinstance(child, nn.Hardsigmoid):
                setattr(module, name, DecomposedHardsigmoid())
    return model


def _fold_batchnorms(layers: nn.Sequential) -> None:
    for index, (conv, norm) in enumerate(pairwise(layers)):
        folded = None
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded = fold_batchnorm(conv, norm)
        if folded is not None:
            weight, bias = folded
            conv.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                conv.bias = nn.Parameter(bias, requires_grad=False)
            layers[index + 1] = nn.Identity()


def export_program(
    model: nn.Module,
    example: Tensor,
    dynamic_axes: Sequence[int] = (),
) -> torch.export.ExportedProgram:
    """Trace a network with torch.export.

    Args:
        model: in evaluation mode, with one input.
        example: an input.
        dynamic_axes: axes of the input whose size may change at run time.
    """
    dynamic_shapes = (dict.fromkeys(dynamic_axes, torch.export.Dim.DYNAMIC),)
    with as_export_errors("torch.export"), torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=dynamic_shapes)
