"""oneDNN's packed convolutions, by the private operators with which torch.compile runs convolutions on CPUs.

Nothing else here uses private operators of torch. Without them, or for inputs other than float32 on CPUs, callers use
`F.conv2d`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class PackedConv(NamedTuple):
    """The arguments of oneDNN's convolution after the input; the weight is in oneDNN's own layout."""

    weight: Tensor
    bias: Tensor | None
    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int
    activation: str
    activation_scalars: list[Any]
    activation_algorithm: str


def _is_worthwhile() -> bool:
    """Return whether this build of torch has the operators and this processor gains from them.

    Packed weights take 42 ms instead of 25 ms for FBNetV3-B on an AVX2 processor (torch 2.14.1, one thread); only
    AVX-512 gains.
    """
    # The operators are private, so a later torch may lack them
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    has_names = all(hasattr(torch.ops.mkldnn, name) for name in names)
    has_operators = torch.backends.mkldnn.is_available() and has_names
    return has_operators and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


PACKS_WEIGHTS = _is_worthwhile()
"""Whether convolutions are packed."""


def pack_conv(
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    relu: bool = False,
) -> PackedConv | None:
    """Pack a convolution, optionally with a ReLU; return None if it cannot be packed."""
    if not PACKS_WEIGHTS or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    geometry = (list(padding), list(stride), list(dilation), groups)
    packed_weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry)
    return PackedConv(packed_weight, bias, *geometry, "relu" if relu else "none", [], "")


def can_run_packed(x: Tensor) -> bool:
    """Return whether packed convolutions accept an input: float32 on a CPU, and not while tracing or compiling."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def run_packed(x: Tensor, conv: PackedConv) -> Tensor:
    """Run a packed convolution on (N, C, H, W)."""
    return torch.ops.mkldnn._convolution_pointwise(x, *conv)
