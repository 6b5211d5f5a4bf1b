"""Depthwise convolution with a fast weight gradient for wide kernels on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN's depthwise kernel computes the weight gradient of kernels up to this width with a padding of at most 1; its
# kernel for grouped convolutions computes all others, which can take several times as long
_MAX_FAST_WIDTH = 3

# Stride and padding, vertical and horizontal
Geometry = tuple[tuple[int, int], tuple[int, int]]


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` that trains faster on CPUs for depthwise float32 kernels wider than 3 and channels-last input.

    Outputs and state are the same; the weight gradient is summed in a different order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H', W')."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - scripting skips this branch only if it has a single condition
            if isinstance(x, Tensor) and self._uses_fast_gradient(x):
                return _DepthwiseFunction.apply(x, self.weight, (self.stride, self.padding))
        return self._conv_forward(x, self.weight, self.bias)

    def _uses_fast_gradient(self, x: Tensor) -> bool:
        """Return whether to compute the weight gradient here rather than in torch.

        That is in eager training on a CPU, for the layers that `_weight_gradient` supports.
        """
        return (
            torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.is_contiguous(memory_format=torch.channels_last)
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and self.weight.requires_grad
            and self.groups == self.in_channels == self.out_channels
            and self.kernel_size[1] > _MAX_FAST_WIDTH
            and self.stride[0] == self.stride[1]
            and self.dilation == (1, 1)
            and self.bias is None
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and self.weight.dtype == torch.float32
        )


def depthwise_conv(layer: DepthwiseConv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Compute a layer without its bias, with another weight (C, 1, K, K), and the fast gradient where possible."""
    if layer._uses_fast_gradient(x):
        return _DepthwiseFunction.apply(x, weight, (layer.stride, layer.padding))
    return layer._conv_forward(x, weight, None)


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return F.conv2d(x, weight, None, *geometry, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        # Only torch's operator has a second derivative
        if torch.is_grad_enabled():
            dx, dw = _torch_gradients(grad, x, weight, ctx.geometry, needs)
            return dx, dw, None
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx, _ = _torch_gradients(grad, x, weight, ctx.geometry, (needs[0], False))
        dw = _weight_gradient(grad, x, weight, ctx.geometry) if needs[1] else None
        return dx, dw, None


def _torch_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: tuple[bool, bool]
) -> Any:
    """Compute the needed gradients, of the input and the weight, with torch's operator."""
    dilation = (1, 1)
    is_transposed = False
    output_padding = (0, 0)
    settings = (*geometry, dilation, is_transposed, output_padding, len(weight))
    mask = [*needs, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)
    return dx, dw


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute the weight gradient (C, 1, K, K) with convolutions of width 3 and 1, which oneDNN computes fast.

    `grad` is the gradient of the output (N, C, H', W'), `x` the input (N, C, H, W).
    """
    (stride, _), (padding, side_padding) = geometry
    dw = torch.empty_like(weight)
    for columns, step, positions in _slice_input(x, weight.shape[-1], stride, side_padding):
        columns, padded_grad = _match_widths(columns, grad, step)

        def narrow_gradient(
            columns: Tensor, width: int, step: int = step, grad: Tensor = padded_grad
        ) -> Tensor:
            """Compute the gradient of a kernel of this width, centered at position 0."""
            narrow_weight = weight[..., :width]
            narrow_geometry = ((stride, step), (padding, width // 2))
            _, narrow_dw = _torch_gradients(grad, columns, narrow_weight, narrow_geometry, (False, True))
            return narrow_dw

        # Compute positions -1, 0 and 1 together, and each of the others separately, with the input shifted
        if any(abs(position) <= 1 for position in positions.values()):
            center = narrow_gradient(columns, 3)
        for kernel_column, position in positions.items():
            if abs(position) <= 1:
                dw[..., kernel_column] = center[..., position + 1]
            elif abs(position) >= columns.shape[-1]:  # reads nothing but padding
                dw[..., kernel_column] = 0
            else:
                shifted = F.pad(columns, (-position, position))
                dw[..., kernel_column] = narrow_gradient(shifted, 1)[..., 0]
    return dw


def _slice_input(
    x: Tensor, width: int, stride: int, padding: int
) -> Iterator[tuple[Tensor, int, dict[int, int]]]:
    """Divide the columns of a kernel of this width between slices of the input, so that positions are small.

    For output column o, kernel column c reads input column `stride * o + c - padding`. If that is at most one column
    away from `stride * o`, it is read from the unchanged input. The others are read from every stride-th input column,
    where they are closer together.

    Yield slices (N, C, H, W'), the step between the columns that neighboring outputs read, and for each kernel column
    the position of the column that output o reads, relative to `step * o`.
    """
    # Distance from `stride * o` at which each kernel column reads
    offsets = {column: column - padding for column in range(width)}
    near = {column: offset for column, offset in offsets.items() if abs(offset) <= 1}
    yield x, stride, near
    # Input columns phase, phase + stride, ..., and the kernel columns that read them
    far = {column: offset for column, offset in offsets.items() if abs(offset) > 1}
    for phase in range(stride):
        positions = {column: offset // stride for column, offset in far.items() if offset % stride == phase}
        if positions:
            columns = x[..., phase::stride].contiguous(memory_format=torch.channels_last)
            yield columns, 1, positions


def _match_widths(columns: Tensor, grad: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Pad input columns or gradient on the right so that a convolution of width 3, padding 1 maps one to the other."""
    missing = grad.shape[-1] - ((columns.shape[-1] - 1) // step + 1)
    if missing > 0:
        columns = F.pad(columns, (0, missing * step))
    elif missing < 0:
        grad = F.pad(grad, (0, -missing))
    return columns, grad
