"""oneDNN's packed convolutions, through the private operators that torch.compile uses on CPUs.

Nothing else here uses private operators of torch. Without them, or for inputs other than float32 on CPUs, callers use
`F.conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PackedConv = tuple[Any, ...]
"""The arguments of oneDNN's convolution after the input; the first is the weight in oneDNN's own memory layout."""

# Private operators of torch 2.14; later versions may lack them
_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")

# Only AVX-512 gains: FBNetV3-B on an AVX2 processor takes 42 ms instead of 25 ms (torch 2.14.1, one thread)
PACKS_WEIGHTS = (
    torch.backends.mkldnn.is_available()
    and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)
"""Whether convolutions are packed."""


def pack_conv(weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, relu: bool) -> PackedConv | None:
    """Pack a convolution with the settings of `conv`, optionally with a ReLU; return None if it cannot be packed."""
    if not PACKS_WEIGHTS or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    conv_args = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
    packed_weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *conv_args)
    # The operator also takes the activation's scalars and algorithm, which ReLU does not need
    activation = "relu" if relu else "none"
    return packed_weight, bias, *conv_args, activation, [], ""


def run_packed(x: Tensor, conv: PackedConv) -> Tensor | None:
    """Run a packed convolution on (N, C, H, W); return None if it is not float32 on a CPU, or while tracing."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    return torch.ops.mkldnn._convolution_pointwise(x, *conv)
