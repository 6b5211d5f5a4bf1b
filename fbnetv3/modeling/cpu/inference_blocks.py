"""Blocks for inference alone: norms folded into convolutions, squeezes as matrix products, results written in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from fbnetv3.modeling.blocks import MBConv

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Sigmoid: torch.sigmoid_,
    nn.SiLU: partial(F.silu, inplace=True),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    nn.Hardsigmoid: partial(F.hardsigmoid, inplace=True),
}


def fuse_blocks(module: nn.Module) -> nn.Module:
    """Replace, in place, what is faster in another form when nothing is trained: units of convolution, norm and
    activation, and inverted residuals. The module must be in eval mode; its outputs stay the same up to rounding.

    Returns:
        The module, or what has taken its place.
    """
    if isinstance(module, MBConv):
        return FusedMBConv(module)
    if isinstance(module, Conv2dNormActivation) and isinstance(module[0], nn.Conv2d):
        return FusedConv.of(module)
    for name, child in module.named_children():
        setattr(module, name, fuse_blocks(child))
    return module


@torch.no_grad()
def fold_batchnorm(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a convolution and the BatchNorm behind it, as one convolution; None if that is not a
    BatchNorm with statistics of its own."""
    if norm is None:
        return conv.weight, conv.bias
    if getattr(norm, "running_mean", None) is None or conv.padding_mode != "zeros":
        return None
    of: Any = norm
    ones = torch.ones_like(of.running_mean)
    weight, bias = (default if value is None else value for value, default in ((of.weight, ones), (of.bias, 0)))
    scale = weight / (of.running_var + of.eps).sqrt()
    offset = bias - of.running_mean * scale
    before = 0 if conv.bias is None else conv.bias
    return conv.weight * scale.reshape(-1, 1, 1, 1), before * scale + offset


class FusedConv(nn.Module):
    """A convolution with the norm behind it folded in, and an activation.

    Args:
        conv: the convolution.
        norm: in eval mode; what is no BatchNorm stays behind the convolution.
        activation: it may write over its input.
    """

    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, ...]

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        both = fold_batchnorm(conv, norm)
        self.norm = None if both else norm
        weight, bias = both or (conv.weight, conv.bias)
        self.register_buffer("weight", weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = cast("tuple[int, ...]", conv.padding)
        self.act = None if activation is None else inplace_function(activation)
        self._packed = self._pack() if self.norm is None else None
        self._summing: tuple[Tensor, int] | None = None

    @classmethod
    def of(cls, unit: nn.Sequential) -> FusedConv:
        """A unit of convolution, norm and activation; the latter two may be missing."""
        conv, *rest = unit
        norm = rest.pop(0) if rest and _is_norm(rest[0]) else None
        return cls(cast("nn.Conv2d", conv), norm, rest[0] if rest else None)

    def _pack(self) -> tuple[Any, ...] | None:
        """What oneDNN's own convolution takes besides the input: weights in its order, and a ReLU to apply at once."""
        if not (_PACKS and self.weight.device.type == "cpu" and self.weight.dtype == torch.float32):
            return None
        shape = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *shape)
        return weight, self.bias, *shape, "relu" if self.act is torch.relu_ else "none", [], ""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if self._packed is not None and x.dtype == torch.float32 and x.device.type == "cpu" and not _is_traced():
            x = torch.ops.mkldnn._convolution_pointwise(x, *self._packed)
            return x if self.act is None or self.act is torch.relu_ else self.act(x)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)

    def summed(self, x: Tensor) -> tuple[Tensor, int]:
        """The output's sum over all places, (N, C', H', W') to (N, C'), and how many they are.

        A depthwise convolution with nothing behind it need not be computed for that: each place of the input counts in
        the sum with the weights that meet it.
        """
        if self.norm is not None or self.act is not None or self.bias is not None or self.groups != x.shape[1]:
            y = self(x)
            return y.sum((2, 3)), y.shape[2] * y.shape[3]
        weight, places = self._weight_of_places(x)
        return (x * weight).sum((2, 3)), places

    def _weight_of_places(self, x: Tensor) -> tuple[Tensor, int]:
        """How each place of a depthwise convolution's input counts in the sum of its output, (1, C, H, W)."""
        size = x.shape[2:]
        known = self._summing[0] if self._summing else x[:0]
        if (known.shape[2:], known.dtype, known.device) != (size, x.dtype, x.device) or not len(known):
            out = [
                (n + 2 * pad - d * (k - 1) - 1) // step + 1
                for n, pad, d, k, step in zip(
                    size, self.padding, self.dilation, self.weight.shape[2:], self.stride, strict=True
                )
            ]
            ones = x.new_ones(1, len(self.weight), *out)
            shape = (1, x.shape[1], *size)
            weight = conv2d_input(
                shape, self.weight.contiguous(), ones, self.stride, self.padding, self.dilation, self.groups
            )
            self._summing = weight.contiguous(memory_format=torch.channels_last), out[0] * out[1]
        assert self._summing is not None
        return self._summing


def _packs() -> bool:
    """Whether this torch has the operators with which torch.compile runs convolutions on CPUs."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


_PACKS = _packs()


def _is_traced() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class FusedSqueezeExcite(nn.Module):
    """The gates of a squeeze-and-excite, from the sums of its channels.

    Args:
        squeeze: the layers.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __init__(self, squeeze: SqueezeExcitation) -> None:
        super().__init__()
        for name, layer in (("1", squeeze.fc1), ("2", squeeze.fc2)):
            self.register_buffer(f"weight{name}", layer.weight.detach().flatten(1).t())
            self.register_buffer(f"bias{name}", layer.bias.detach())
        self.act, self.gate = inplace_function(squeeze.activation), inplace_function(squeeze.scale_activation)

    def forward(self, sums: Tensor, places: int) -> Tensor:
        """Sums (N, C) over so many places to gates (N, C)."""
        hidden = self.act(torch.addmm(self.bias1, sums, self.weight1, alpha=1 / places))
        return self.gate(torch.addmm(self.bias2, hidden, self.weight2))


class FusedMBConv(nn.Module):
    """An inverted residual for inference.

    Args:
        block: the block, in eval mode.
    """

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        self.expand = None if isinstance(block.expand, nn.Identity) else FusedConv.of(block.expand)
        self.depthwise, self.project = FusedConv.of(block.depthwise), FusedConv.of(block.project)
        self.se = None if isinstance(block.se, nn.Identity) else FusedSqueezeExcite(block.se)
        self.has_residual = block.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.depthwise(x if self.expand is None else self.expand(x))
        if self.se is not None:
            y.mul_(self.se(y.sum((2, 3)), y.shape[2] * y.shape[3])[:, :, None, None])
        y = self.project(y)
        return y.add_(x) if self.has_residual else y

    def pooled(self, x: Tensor) -> Tensor:
        """What a global average of the output would be: (N, in_channels, H, W) to (N, out_channels).

        The last convolution is linear: the average may go first, and then there is one place instead of all.
        """
        if self.project.norm is not None or self.project.act is not None:
            return self(x).mean((2, 3))
        sums, places = self.depthwise.summed(x if self.expand is None else self.expand(x))
        if self.se is not None:
            sums = self.se(sums, places).mul_(sums)
        y = F.linear(sums.div_(places), self.project.weight.flatten(1), self.project.bias)
        return y.add_(x.mean((2, 3))) if self.has_residual else y


def inplace_function(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    """An activation as a function that may write over its input."""
    for kind, function in _IN_PLACE.items():
        if isinstance(activation, kind):
            return function
    return activation


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "eps")
