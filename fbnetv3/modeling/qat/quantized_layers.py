"""Turn a trained network into one that computes as its int8 export will, and can be trained further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from fbnetv3.errors import UsageError
from fbnetv3.modeling.batchnorm_folding import fold_batchnorm_with_gradient
from fbnetv3.modeling.blocks import MBConv, MBPool
from fbnetv3.modeling.cpu.depthwise import DepthwiseConv2d, depthwise_conv
from fbnetv3.modeling.qat.fake_quantizers import (
    HARD_SIGMOID_RANGE,
    HARD_SWISH_RANGE,
    MapQuantizer,
    fake_quantize_weight,
)
from fbnetv3.utils.text import first_few

FLOAT_SHARE = 0.01
"""Share of the weights in the first layers that stay float by default."""

LayerRanges = Mapping[str, Sequence[float]]
"""For each int8 layer by name: the lowest and highest value of its input, and of its output."""


@dataclass(frozen=True)
class LearnedInt8:
    """What quantization-aware training leaves besides weights; layers without ranges stay float."""

    ranges: LayerRanges
    weight_bits: int = 8


def count_float_layers(weight_counts: Sequence[int], max_share: float) -> int:
    """Return how many of a network's first layers stay float32: those that together hold `max_share` of all weights.

    The first layers have the largest feature maps with the fewest channels. Rounding does the most harm there, and
    float32 weights take little space. Where quantizing the maps takes longer than integer products save, float32 is
    also faster.
    """
    return int((np.cumsum(weight_counts) <= max_share * sum(weight_counts)).sum())


class _QuantizedLayer(nn.Module):
    """What a convolution or linear layer becomes: it rounds its input, its weight and its output.

    The BatchNorm that follows is folded into the weight, with its running statistics, which stay constant. It keeps
    its place and its parameters, which are trained.
    """

    weight: Tensor
    bias: Any  # a tensor or None
    input_quantizer: nn.Module  # an identity if the block before has rounded the input
    output_quantizer: MapQuantizer
    weight_bits: int
    folded_norm: tuple[nn.Module, ...]  # the norm in a tuple, so that it is no submodule; empty without one

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer and its norm."""
        weight, bias = self.weight, self.bias
        if self.folded_norm:
            weight, bias = fold_batchnorm_with_gradient(self, *self.folded_norm)  # type: ignore[misc, arg-type]
        weight = fake_quantize_weight(weight.float(), self.weight_bits)
        return self.output_quantizer(self._compute(self.input_quantizer(x), weight, bias))

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class QuantizedConv2d(_QuantizedLayer, nn.Conv2d):
    """A convolution that rounds as int8 does."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class QuantizedDepthwiseConv2d(_QuantizedLayer, DepthwiseConv2d):
    """A depthwise convolution that rounds as int8 does."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = depthwise_conv(self, x, weight)
        return y if bias is None else y + bias[:, None, None]


class QuantizedLinear(_QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """A linear layer that rounds as int8 does."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm that the convolution before it computes."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input


_QUANTIZED_CLASSES: dict[type[nn.Module], type[_QuantizedLayer]] = {
    nn.Conv2d: QuantizedConv2d,
    DepthwiseConv2d: QuantizedDepthwiseConv2d,
    nn.Linear: QuantizedLinear,
}


def fake_quantize(
    model: nn.Module, *, weight_bits: int = 8, float_share: float = FLOAT_SHARE
) -> list[nn.Module]:
    """Make a trained network compute as its int8 export does, in place; its state dict stays the same.

    Return the norms of the layers that stay float, which must stay in evaluation mode like those that are folded.

    Args:
        model: network whose norms are each preceded by a convolution, in an `nn.Sequential`.
        weight_bits: 8, or 7 as for processors on which sums of two products of 8 bits saturate.
        float_share: share of the weights in the first layers, which stay float; see `count_float_layers`.

    Raises:
        UsageError: the network has norms that cannot be folded.
    """
    layers = [module for module in model.modules() if type(module) in _QUANTIZED_CLASSES]
    num_float = count_float_layers([_weight(layer).numel() for layer in layers], float_share)
    _quantize_layers(model, layers[num_float:], weight_bits)
    return [module for module in model.modules() if type(module) is nn.BatchNorm2d]


def restore_fake_quantization(model: nn.Module, learned: LearnedInt8) -> None:
    """Make a network with trained weights compute as its int8 export does, in place.

    Raises:
        UsageError: the network does not have these layers, or has norms that cannot be folded.
    """
    modules = dict(model.named_modules())
    if unknown := sorted(learned.ranges.keys() - modules.keys()):
        raise UsageError(f"ranges of layers that the network does not have: {first_few(unknown)}")
    _quantize_layers(model, [modules[name] for name in learned.ranges], learned.weight_bits)
    set_ranges(model, learned.ranges)


def set_ranges(model: nn.Module, ranges: LayerRanges) -> None:
    """Set the ranges of a fake-quantized network; nothing happens to an ordinary one."""
    for name, (input_quantizer, output_quantizer) in _quantizers(model):
        values = torch.tensor(ranges[name], device=input_quantizer.ends.device)
        input_quantizer.ends.copy_(values[:2])
        output_quantizer.ends.copy_(values[2:])


def read_ranges(model: nn.Module) -> dict[str, list[float]]:
    """Return the ranges of a network's fake-quantized layers by name; empty for an ordinary network."""
    return {
        name: torch.cat([quantizer.ends for quantizer in pair]).tolist()
        for name, pair in _quantizers(model)
    }


def stop_observing(model: nn.Module) -> None:
    """Keep the ranges of a fake-quantized network constant from now on."""
    for module in model.modules():
        if isinstance(module, MapQuantizer):
            module.observing = False


def _quantize_layers(model: nn.Module, layers: Sequence[nn.Module], weight_bits: int) -> None:
    norms = _following_norms(model)
    folded = {id(norm) for norm in norms.values()}
    unfolded = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in folded
    ]
    if unfolded:
        raise UsageError(
            f"quantization-aware training needs a convolution before each norm, in an nn.Sequential, which "
            f"{first_few(unfolded)} lack"
        )
    limits = _output_limits(model)
    for layer in layers:
        norm = norms.get(id(layer))
        # Change the class in place: parameters, hooks and names stay, as in torch's parametrizations
        layer.__class__ = _QUANTIZED_CLASSES[type(layer)]
        layer.weight_bits = weight_bits  # type: ignore[assignment]
        layer.input_quantizer = MapQuantizer()
        layer.output_quantizer = MapQuantizer(*limits.get(id(layer), ()))
        layer.folded_norm = () if norm is None else (norm,)  # type: ignore[assignment]
        if norm is not None:
            norm.__class__ = FoldedBatchNorm2d
        layer.to(_weight(layer).device)
    # A shortcut adds the rounded input of its block
    for module in model.modules():
        if isinstance(module, MBConv) and module.has_residual:
            first = _first_layer(module)
            if isinstance(first, _QuantizedLayer):
                module.input_quantizer = first.input_quantizer
                first.input_quantizer = nn.Identity()
                module.register_forward_pre_hook(_quantize_input)


def _quantize_input(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round the input of a block; a function, so that copies of the network use their own quantizers."""
    return (block.input_quantizer(inputs[0]), *inputs[1:])  # type: ignore[operator]


def _quantizers(model: nn.Module) -> Iterator[tuple[str, tuple[MapQuantizer, MapQuantizer]]]:
    """Yield the name of each fake-quantized layer, and the quantizers of its input and its output."""
    block_quantizers = {
        id(_first_layer(block)): block.input_quantizer
        for block in model.modules()
        if isinstance(block, MBConv) and hasattr(block, "input_quantizer")
    }
    for name, layer in model.named_modules():
        if isinstance(layer, _QuantizedLayer):
            input_quantizer: Any = block_quantizers.get(id(layer), layer.input_quantizer)
            yield name, (input_quantizer, layer.output_quantizer)


def _first_layer(block: MBConv) -> nn.Module:
    units: Any = block.depthwise if isinstance(block.expand, nn.Identity) else block.expand
    return units[0]


def _following_norms(model: nn.Module) -> dict[int, nn.Module]:
    """Return the BatchNorm that directly follows each convolution, by the id of the convolution."""
    sequences = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    return {
        id(layer): norm
        for sequence in sequences
        for layer, norm in pairwise(sequence)
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats
    }


def _output_limits(model: nn.Module) -> dict[int, tuple[tuple[float, float]]]:
    """Return the limits of layers' outputs beyond which the activation that follows is constant, by the layer's id."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            pairs += pairwise(m for m in module if not isinstance(m, nn.BatchNorm2d))
        elif isinstance(module, SqueezeExcitation):
            pairs += [(module.fc1, module.activation), (module.fc2, module.scale_activation)]
        elif isinstance(module, MBPool):
            pairs.append((module.project, module.act))
    limits = {nn.Hardswish: HARD_SWISH_RANGE, nn.Hardsigmoid: HARD_SIGMOID_RANGE}
    return {id(layer): (limits[type(act)],) for layer, act in pairs if type(act) in limits}


def _weight(layer: nn.Module) -> Tensor:
    return layer.weight  # type: ignore[return-value]
