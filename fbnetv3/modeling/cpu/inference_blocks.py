"""Blocks for inference: norms folded into convolutions, squeezes as matrix products, results written in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from fbnetv3.modeling.batchnorm_folding import fold_batchnorm
from fbnetv3.modeling.blocks import MBConv
from fbnetv3.modeling.cpu import mkldnn_ops

_INPLACE_FUNCTIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Sigmoid: torch.sigmoid_,
    nn.SiLU: partial(F.silu, inplace=True),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    nn.Hardsigmoid: partial(F.hardsigmoid, inplace=True),
}


def fuse_blocks(module: nn.Module) -> nn.Module:
    """Replace units and inverted residuals in eval mode with inference versions, in place; return the new module.

    Outputs stay the same up to rounding. Subclasses that override `forward` are left unchanged.
    """
    if isinstance(module, MBConv) and type(module).forward is MBConv.forward:
        return FusedMBConv(module)
    if isinstance(module, Conv2dNormActivation) and type(module).forward is nn.Sequential.forward:
        conv = module[0]
        if (
            isinstance(conv, nn.Conv2d)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        ):
            return FusedConv(*module)
    for name, child in module.named_children():
        setattr(module, name, fuse_blocks(child))
    return module


class FusedConv(nn.Module):
    """A convolution with zero padding. `others` may be its norm, which is folded if possible, and its activation."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Module, *others: nn.Module) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        layers = list(others)
        norm = layers.pop(0) if layers and hasattr(layers[0], "eps") else None
        folded = fold_batchnorm(conv, norm)
        self.norm = norm if folded is None else None
        weight, bias = folded or (conv.weight, conv.bias)
        self.register_buffer("weight", weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.conv_args: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.act = _inplace_function(layers[0]) if layers else None
        self._has_relu = self.act is torch.relu_
        self._packed = None
        if self.norm is None:
            self._packed = mkldnn_ops.pack_conv(self.weight, self.bias, conv, self._has_relu)
        self._output_sum: tuple[Tensor, int] | None = None  # cached

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self._packed is not None:
            y = mkldnn_ops.run_packed(x, self._packed)
            if y is not None:
                return y if self.act is None or self._has_relu else self.act(y)
        # Without packed weights
        y = F.conv2d(x, self.weight, self.bias, *self.conv_args)
        if self.norm is not None:
            y = _writable(self.norm(y), self.norm)
        return y if self.act is None else self.act(y)

    def forward_sum(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the sum (N, C') of the output over all positions, and the number of positions; see `_sum_positions`.

        For a depthwise convolution with nothing after it, it is computed as a weighted sum of the input.
        """
        is_depthwise = self.conv_args[-1] == x.shape[1]
        is_linear = self.norm is None and self.act is None and self.bias is None
        if is_depthwise and is_linear and not _is_half(x):
            weights, positions = self._output_sum_weights(x)
            return (x * weights).sum((2, 3)), positions
        return _sum_positions(self(x))

    def _output_sum_weights(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the weight (1, C, H, W) of each input in the sum of the output, and the number of output positions.

        The weights are the gradient of the sum with respect to the input. They are cached for inputs of the same size.
        """
        size = x.shape[2:]
        if self._output_sum is not None:
            cached = self._output_sum[0]
            if (cached.shape[2:], cached.dtype, cached.device) == (size, x.dtype, x.device):
                return self._output_sum
        # Size of the output
        stride, padding, dilation, _ = self.conv_args
        axes = zip(size, padding, dilation, self.weight.shape[2:], stride, strict=True)
        output_size = [
            (n + 2 * pad - dil * (kernel - 1) - 1) // step + 1 for n, pad, dil, kernel, step in axes
        ]
        # The gradient of a sum: all outputs have gradient 1
        ones = x.new_ones(1, len(self.weight), *output_size)
        input_shape = (1, x.shape[1], *size)
        weights = conv2d_input(input_shape, self.weight.contiguous(), ones, *self.conv_args)
        weights = weights.contiguous(memory_format=torch.channels_last)
        self._output_sum = weights, output_size[0] * output_size[1]
        return self._output_sum


class FusedSqueezeExcite(nn.Module):
    """The gates of a squeeze-and-excite, computed from sums over positions by two matrix products."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __init__(self, squeeze: SqueezeExcitation) -> None:
        super().__init__()
        for number, layer in ((1, squeeze.fc1), (2, squeeze.fc2)):
            self.register_buffer(f"weight{number}", layer.weight.detach().flatten(1).t())
            self.register_buffer(f"bias{number}", layer.bias.detach())
        self.act = _inplace_function(squeeze.activation)
        self.gate = _inplace_function(squeeze.scale_activation)

    def forward(self, sums: Tensor, positions: int) -> Tensor:
        """Map sums (N, C) over a number of positions to gates (N, C)."""
        hidden = self.act(torch.addmm(self.bias1, sums, self.weight1, alpha=1 / positions))
        return self.gate(torch.addmm(self.bias2, hidden, self.weight2))


class FusedMBConv(nn.Module):
    """An inverted residual for inference, made from a block in eval mode."""

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        self.expand = FusedConv(*block.expand) if isinstance(block.expand, nn.Sequential) else None
        self.depthwise = FusedConv(*block.depthwise)
        self.project = FusedConv(*block.project)
        self.se = FusedSqueezeExcite(block.se) if isinstance(block.se, SqueezeExcitation) else None
        self.has_residual = block.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.depthwise(x if self.expand is None else self.expand(x))
        # Squeeze-and-excite from the sums over positions
        if self.se is not None:
            gates = self.se(*_sum_positions(y))
            y = _writable(y, self.depthwise).mul_(gates[:, :, None, None])
        y = self.project(y)
        return _writable(y, self.project).add_(x) if self.has_residual else y

    def forward_mean(self, x: Tensor) -> Tensor:
        """Compute the mean of the output over all positions: (N, in_channels, H, W) to (N, out_channels).

        The last convolution is linear, so the mean is taken before it, which leaves it a single position.
        """
        if self.project.norm is not None or self.project.act is not None:
            return self(x).mean((2, 3))
        # The depthwise convolution is needed only as its sum
        sums, positions = self.depthwise.forward_sum(x if self.expand is None else self.expand(x))
        if self.se is not None:
            sums = _writable(self.se(sums, positions), self.se).mul_(sums)
        means = sums.div_(positions)
        y = F.linear(means, self.project.weight.flatten(1), self.project.bias)
        return y.add_(x.mean((2, 3))) if self.has_residual else y


def _is_half(x: Tensor) -> bool:
    """Return whether operators on a map compute in float16 or bfloat16."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return True
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _sum_positions(y: Tensor) -> tuple[Tensor, int]:
    """Return the sum (N, C) of a map over all positions, and the number of positions.

    For half precision, return the mean, as the sum over a single position: float16 ends at 65,504, which a sum may
    exceed. torch computes the mean in float32.
    """
    if _is_half(y):
        return y.mean((2, 3)), 1
    return y.sum((2, 3)), y.shape[2] * y.shape[3]


def _writable(y: Tensor, module: nn.Module) -> Tensor:
    """Return a module's output, copied if a hook of the module, or one of all modules, may have kept it."""
    hooks = (module._forward_hooks, torch.nn.modules.module._global_forward_hooks)
    return y.clone() if any(hooks) else y


def _inplace_function(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    return _INPLACE_FUNCTIONS.get(type(activation), activation)
