"""Strides of a network's convolutions: dilation instead of the last ones, and the smallest input that they allow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fbnetv3.arch.definition import Block
from fbnetv3.errors import UsageError

OUTPUT_STRIDES = (8, 16, 32)


def limit_output_stride(blocks: Iterable[tuple[Block, nn.Module]], output_stride: int) -> None:
    """Replace the strides after `output_stride` with dilation, in place, so that maps do not get smaller.

    The weights stay the same: a convolution after a removed stride of 2 reads every second position. Where a stride is
    removed or a convolution is dilated, it pads by kernel // 2 times the dilation, also in networks that pad less.

    Args:
        blocks: the blocks of a network in order, with their modules.
        output_stride: largest stride that is kept.
    """
    stride, dilation = 1, 1
    for block, module in blocks:
        removes_stride = block.spec.stride > 1 and stride * block.spec.stride > output_stride
        if removes_stride or dilation > 1:
            convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
            if removes_stride and all(conv.stride == (1, 1) for conv in convs):
                raise UsageError(
                    f"output_stride {output_stride}: block {block.name} ({block.kind}) has no strided convolution to "
                    "dilate; use output_stride 32"
                )
            for conv in convs:
                _dilate(conv, dilation)
        # The convolution whose stride is removed still sees the dense map of its input
        if removes_stride:
            dilation *= block.spec.stride
        else:
            stride *= block.spec.stride


def _dilate(conv: nn.Conv2d, dilation: int) -> None:
    conv.stride = (1, 1)
    conv.dilation = (dilation, dilation)
    height, width = conv.kernel_size
    conv.padding = (dilation * (height // 2), dilation * (width // 2))


def min_input_size(network: nn.Module) -> int:
    """Return the smallest height and width in pixels for which no map of a network's convolutions is empty.

    The convolutions must be registered in the order in which they run.
    """
    side = 1
    for conv in reversed([m for m in network.modules() if isinstance(m, nn.Conv2d)]):
        # Go back from the side of a convolution's output to that of its input
        padding = conv.padding[0] if isinstance(conv.padding, tuple) else 0
        reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
        side = max(1, (side - 1) * conv.stride[0] + reach - 2 * int(padding))
    return side


def check_input_size(x: Tensor, smallest: int, network: str) -> None:
    """Raise UsageError if an input (N, C, H, W) is smaller than a network allows, except while it is traced."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    height, width = x.shape[-2:]
    if min(height, width) < smallest:
        raise UsageError(
            f"an input of {height}x{width} pixels is too small for {network}: "
            f"resize it to at least {smallest}x{smallest}"
        )
