"""Depthwise convolution whose weights' gradient does not take the slow path that CPUs have for wide kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Widest kernel, with padding of 1 at most, whose weights' gradient oneDNN computes by its depthwise kernel. Others go
# through the kernel for grouped convolutions, which takes up to ten times as long.
_WIDEST = 3


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d`, faster to train on CPUs where it is depthwise, wider than three, in float32 and channels-last.

    Outputs and state are the same; the weights' gradient is summed in another order. `benchmarks/train_step.py` shows
    what it gains.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - scripting leaves out this branch, not a part of a condition
            if isinstance(x, Tensor) and self._is_slow() and _is_plain(x):
                return _Depthwise.apply(x, self.weight, self.stride, self.padding)
        return self._conv_forward(x, self.weight, self.bias)

    def _is_slow(self) -> bool:
        """Whether torch would take the slow path, and ours knows a way around it."""
        return (
            self.weight.requires_grad
            and self.groups == self.in_channels == self.out_channels
            and self.kernel_size[1] > _WIDEST
            and self.stride[0] == self.stride[1]
            and self.dilation == (1, 1)
            and self.bias is None
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and self.weight.dtype == torch.float32
        )


def _is_plain(x: Tensor) -> bool:
    """Whether a float32 tensor on a CPU, channels-last, is about to be differentiated by eager autograd."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        twice = torch.is_grad_enabled()  # it will be differentiated once more, which torch's own operator can
        if not twice:
            grad = grad.contiguous(memory_format=torch.channels_last)
        dx, dw = _torch_gradients(grad, x, weight, ctx.stride, ctx.padding, need_x, need_weight and twice)
        if need_weight and not twice:
            dw = _weight_gradient(grad, x, weight, ctx.stride[0], ctx.padding)
        return dx, dw, None, None


def _torch_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a depthwise convolution with respect to input and weights, by torch's operator."""
    backward = torch.ops.aten.convolution_backward
    wanted, groups = [need_x, need_weight, False], len(weight)
    return backward(grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted)[:2]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """The weights' gradient (C, 1, K, K), in parts whose kernels are narrow enough for oneDNN's fast path."""
    found = torch.empty_like(weight)
    for part, step, places in _parts(x, weight.shape[-1], stride, padding[1]):
        part, g = _fitted(part, grad, step)

        def narrow(columns: Tensor, width: int, step: int = step, g: Tensor = g) -> Tensor:
            like = weight[..., :width]
            _, dw = _torch_gradients(g, columns, like, (stride, step), (padding[0], width // 2), False, True)
            assert dw is not None
            return dw

        if any(abs(place) <= 1 for place in places.values()):
            near = narrow(part, 3)
        for column, place in places.items():
            if abs(place) <= 1:
                found[..., column] = near[..., place + 1]
            elif abs(place) >= part.shape[-1]:  # meets nothing but padding
                found[..., column] = 0
            else:
                found[..., column] = narrow(F.pad(part, (-place, place)), 1)[..., 0]
    return found


def _parts(x: Tensor, width: int, stride: int, padding: int) -> Iterator[tuple[Tensor, int, dict[int, int]]]:
    """Parts of the input, the step in which outputs walk over each, and the kernel's columns that it serves.

    For column o of the output, column c of the kernel meets column `stride * o + c - padding` of the input. The middle
    ones meet it there, or beside it, in the input as it is; the others in every `stride`-th column of it, where they
    lie closer together. With each column goes its place: how far from `step * o` it lies.
    """
    offsets = {column: column - padding for column in range(width)}
    yield x, stride, {column: offset for column, offset in offsets.items() if abs(offset) <= 1}
    for phase in range(stride):
        places = {c: offset // stride for c, offset in offsets.items() if abs(offset) > 1 and offset % stride == phase}
        if places:
            part = x if stride == 1 else x[..., phase::stride].contiguous(memory_format=torch.channels_last)
            yield part, 1, places


def _fitted(part: Tensor, grad: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Both with columns of zeros on the right, so that a convolution of width 3 and padding 1 maps one to the other."""
    missing = grad.shape[-1] - ((part.shape[-1] - 1) // step + 1)
    if missing > 0:
        part = F.pad(part, (0, missing * step))
    elif missing < 0:
        grad = F.pad(grad, (0, -missing))
    return part, grad
