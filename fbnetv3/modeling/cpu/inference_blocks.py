"""Blocks for inference: norms folded into convolutions, squeezes as matrix products, results written in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from fbnetv3.modeling.batchnorm_folding import fold_batchnorm
from fbnetv3.modeling.blocks import Hardswish, MBConv
from fbnetv3.modeling.cpu import mkldnn_ops

_INPLACE_FUNCTIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Sigmoid: torch.sigmoid_,
    nn.SiLU: partial(F.silu, inplace=True),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    Hardswish: partial(F.hardswish, inplace=True),
    nn.Hardsigmoid: partial(F.hardsigmoid, inplace=True),
}


def fuse_blocks(module: nn.Module) -> nn.Module:
    """Replace conv-norm-activation units and inverted residuals with their inference versions.

    The replacement is in place. Outputs in eval mode stay the same up to rounding; modules that override the forward
    pass of these blocks are left unchanged.

    Args:
        module: a module in eval mode.

    Returns:
        The module, or its replacement.
    """
    if isinstance(module, MBConv) and type(module).forward is MBConv.forward:
        return FusedMBConv(module)
    if isinstance(module, Conv2dNormActivation) and _can_fuse(module):
        return FusedConv.from_unit(module)
    for name, child in module.named_children():
        setattr(module, name, fuse_blocks(child))
    return module


def _can_fuse(unit: nn.Sequential) -> bool:
    conv = unit[0]
    if type(unit).forward is not nn.Sequential.forward or not isinstance(conv, nn.Conv2d):
        return False
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class FusedConv(nn.Module):
    """A convolution with its following norm folded in, plus an activation.

    Args:
        conv: the convolution, with zero padding.
        norm: a norm in eval mode; one that cannot be folded is applied after the convolution.
        activation: an activation, which may overwrite its input.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        folded = fold_batchnorm(conv, norm)
        self.norm = norm if folded is None else None
        weight, bias = folded or (conv.weight, conv.bias)
        self.register_buffer("weight", weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.stride = conv.stride
        self.padding = cast("tuple[int, ...]", conv.padding)
        self.dilation = conv.dilation
        self.groups = conv.groups
        self.act = None if activation is None else inplace_function(activation)
        self._has_relu = self.act is torch.relu_
        self._packed = self._pack()
        self._output_sum: tuple[Tensor, int] | None = None  # cached result of `_output_sum_weights`

    @classmethod
    def from_unit(cls, unit: nn.Sequential) -> FusedConv:
        """Fuse a unit of convolution, norm and activation, of which the latter two are optional."""
        conv, *rest = unit
        has_norm = bool(rest) and hasattr(rest[0], "eps")
        norm = rest.pop(0) if has_norm else None
        activation = rest[0] if rest else None
        return cls(cast("nn.Conv2d", conv), norm, activation)

    def _pack(self) -> mkldnn_ops.PackedConv | None:
        if self.norm is not None:
            return None
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        return mkldnn_ops.pack_conv(self.weight, self.bias, *geometry, relu=self._has_relu)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self._packed is not None and mkldnn_ops.can_run_packed(x):
            y = mkldnn_ops.run_packed(x, self._packed)
            return y if self.act is None or self._has_relu else self.act(y)
        # Without packed weights
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            y = self.norm(y)
        return y if self.act is None else self.act(y)

    def forward_sum(self, x: Tensor) -> tuple[Tensor, int]:
        """Sum the output over all positions.

        For a depthwise convolution with nothing after it, the output is not computed: its sum is a weighted sum of the
        input.

        Args:
            x: input (N, C, H, W).

        Returns:
            Sums (N, C'), and the number of positions of the output.
        """
        is_linear = self.norm is None and self.act is None and self.bias is None
        is_depthwise = self.groups == x.shape[1]
        if not (is_linear and is_depthwise):
            y = self(x)
            return y.sum((2, 3)), y.shape[2] * y.shape[3]
        weights, positions = self._output_sum_weights(x)
        return (x * weights).sum((2, 3)), positions

    def _output_sum_weights(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the weights (1, C, H, W) by which the input enters the output's sum, and the output's positions.

        They are the gradient of the sum with respect to the input, and cached for inputs of the same size.
        """
        size = x.shape[2:]
        if self._output_sum is not None:
            cached = self._output_sum[0]
            if (cached.shape[2:], cached.dtype, cached.device) == (size, x.dtype, x.device):
                return self._output_sum
        # Size of the output
        output_size = [
            (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for n, padding, dilation, kernel, stride in zip(
                size, self.padding, self.dilation, self.weight.shape[2:], self.stride, strict=True
            )
        ]
        # The gradient of a sum: all outputs have gradient 1
        ones = x.new_ones(1, len(self.weight), *output_size)
        input_shape = (1, x.shape[1], *size)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        weights = conv2d_input(input_shape, self.weight.contiguous(), ones, *geometry)
        weights = weights.contiguous(memory_format=torch.channels_last)
        self._output_sum = weights, output_size[0] * output_size[1]
        return self._output_sum


class FusedSqueezeExcite(nn.Module):
    """The gates of a squeeze-and-excite, computed from sums over positions by two matrix products.

    Args:
        squeeze: the layers.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __init__(self, squeeze: SqueezeExcitation) -> None:
        super().__init__()
        for number, layer in ((1, squeeze.fc1), (2, squeeze.fc2)):
            self.register_buffer(f"weight{number}", layer.weight.detach().flatten(1).t())
            self.register_buffer(f"bias{number}", layer.bias.detach())
        self.act = inplace_function(squeeze.activation)
        self.gate = inplace_function(squeeze.scale_activation)

    def forward(self, sums: Tensor, positions: int) -> Tensor:
        """Map sums (N, C) over a number of positions to gates (N, C)."""
        hidden = self.act(torch.addmm(self.bias1, sums, self.weight1, alpha=1 / positions))
        return self.gate(torch.addmm(self.bias2, hidden, self.weight2))


class FusedMBConv(nn.Module):
    """An inverted residual for inference.

    Args:
        block: the block, in eval mode.
    """

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        has_expand = isinstance(block.expand, nn.Sequential)
        self.expand = FusedConv.from_unit(cast("nn.Sequential", block.expand)) if has_expand else None
        self.depthwise = FusedConv.from_unit(block.depthwise)
        self.project = FusedConv.from_unit(block.project)
        self.se = FusedSqueezeExcite(block.se) if isinstance(block.se, SqueezeExcitation) else None
        self.has_residual = block.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.depthwise(x if self.expand is None else self.expand(x))
        # Squeeze-and-excite from the sums over positions
        if self.se is not None:
            gates = self.se(y.sum((2, 3)), y.shape[2] * y.shape[3])
            y.mul_(gates[:, :, None, None])
        y = self.project(y)
        return y.add_(x) if self.has_residual else y

    def forward_mean(self, x: Tensor) -> Tensor:
        """Compute the mean of the output over all positions: (N, in_channels, H, W) to (N, out_channels).

        The last convolution is linear, so the mean is taken before it, which leaves it a single position.
        """
        if self.project.norm is not None or self.project.act is not None:
            return self(x).mean((2, 3))
        # The depthwise convolution is needed only as its sum
        sums, positions = self.depthwise.forward_sum(x if self.expand is None else self.expand(x))
        if self.se is not None:
            sums = self.se(sums, positions).mul_(sums)
        means = sums.div_(positions)
        y = F.linear(means, self.project.weight.flatten(1), self.project.bias)
        return y.add_(x.mean((2, 3))) if self.has_residual else y


def inplace_function(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes an activation in place; unknown activations are returned unchanged."""
    return _INPLACE_FUNCTIONS.get(type(activation), activation)
