"""Measure how much each layer's rounding to int8 changes a network's outputs, and choose layers to keep in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from fbnetv3.modeling.qat.fake_quantizers import (
    HARD_SIGMOID_RANGE,
    HARD_SWISH_RANGE,
    fake_quantize_map,
    fake_quantize_weight,
)
from fbnetv3.modeling.qat.quantized_layers import count_float_layers

_ATEN = torch.ops.aten
LAYER_TARGETS = (_ATEN.conv2d.default, _ATEN.linear.default)
"""Operators whose products int8 exports compute in integers."""
_NUM_IMAGES = 16
_CHUNK = 4  # images at a time; their feature maps are kept for the backward pass
_NUM_PROBES = 8  # random directions of the outputs
# Factor of the remaining error for which other layers than the first stay in float
_MIN_GAIN = 2 / 3


@dataclass(frozen=True)
class LayerSensitivity:
    """What a layer's rounding does, and what it costs to avoid it.

    Attributes:
        error: mean squared change of the outputs if only this layer is int8, relative to their variance.
        num_weights: number of its weights.
    """

    error: float
    num_weights: int


def measure_sensitivity(
    program: ExportedProgram, batches: Iterable[np.ndarray], weight_bits: int = 8
) -> dict[str, LayerSensitivity]:
    """Return the sensitivity of each convolution and linear layer by name, in the order of the graph.

    All layers are measured together. A layer's rounding error e changes the outputs by about J e, where J are their
    derivatives with respect to the layer's output. For random signs v, the mean of (v J e)^2 is the squared length of
    J e; and v J, for all layers, takes one backward pass (Hutchinson's estimator).

    Args:
        program: exported network with one input (N, channels, H, W) and one output (N, classes).
        batches: images, float32 (N, channels, H, W); the first 16 are used.
        weight_bits: 8 or 7.
    """
    model: Any = program.module()
    layers = layer_names(model)
    chunk = _CHUNK if program.example_inputs[0][0].shape[0] > 1 else 1
    images = torch.from_numpy(np.concatenate(list(islice(batches, _NUM_IMAGES)))[:_NUM_IMAGES])
    # Equal chunks of several images, because a size of 1 cannot vary
    if len(images) < chunk:
        images = images.repeat(chunk, 1, 1, 1)[:chunk]
    chunks = images[: len(images) // chunk * chunk].split(chunk)
    observer = _RangeObserver(model, layers)
    with torch.no_grad():
        outputs = torch.cat([observer.run(part) for part in chunks])
    generator = torch.Generator().manual_seed(0)
    squares = dict.fromkeys(layers, 0.0)
    for part in chunks:
        run = _NoiseMeter(model, observer.ends, weight_bits)
        logits = run.run(part.requires_grad_())
        maps = [run.maps[node] for node in layers]
        for _ in range(_NUM_PROBES):
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1
            gradients = torch.autograd.grad(logits, maps, signs, retain_graph=True)
            for node, gradient in zip(layers, gradients, strict=True):
                changes = (gradient * run.noise[node]).flatten(1).sum(1)
                squares[node] += float(changes.square().sum())
    scale = _NUM_PROBES * outputs.numel() * max(float(outputs.var()), torch.finfo(torch.float32).tiny)
    return {
        name: LayerSensitivity(squares[node] / scale, observer.num_weights[node])
        for node, name in layers.items()
    }


def choose_float_layers(sensitivities: Mapping[str, LayerSensitivity], max_share: float) -> list[str]:
    """Return the layers to keep in float, which together hold at most `max_share` of all weights, in the graph's order.

    These are the network's first layers, which are also faster in float, unless those that do the most harm for their
    size reduce the remaining error by another third.
    """
    counts = [layer.num_weights for layer in sensitivities.values()]
    first = list(sensitivities)[: count_float_layers(counts, max_share)]
    harmful = _most_harmful(sensitivities, max_share * sum(counts))
    limit = _MIN_GAIN * _remaining_error(sensitivities, first)
    return harmful if _remaining_error(sensitivities, harmful) < limit else first


def _most_harmful(sensitivities: Mapping[str, LayerSensitivity], max_weights: float) -> list[str]:
    """Return layers by their error per weight; one that is too large is passed over for smaller ones."""
    order = sorted(sensitivities.items(), key=lambda item: -item[1].error / item[1].num_weights)
    chosen = set()
    for name, layer in order:
        if layer.num_weights <= max_weights:
            max_weights -= layer.num_weights
            chosen.add(name)
    return [name for name in sensitivities if name in chosen]


def _remaining_error(sensitivities: Mapping[str, LayerSensitivity], float_layers: Sequence[str]) -> float:
    return sum(layer.error for name, layer in sensitivities.items() if name not in float_layers)


def most_sensitive(sensitivities: Mapping[str, LayerSensitivity]) -> list[str]:
    """Return all layers, the most sensitive first."""
    return sorted(sensitivities, key=lambda name: -sensitivities[name].error)


def layer_names(model: GraphModule) -> dict[Node, str]:
    """Return the name of each layer of a program's module: that of its weight in the network."""
    nodes = [node for node in model.graph.nodes if node.target in LAYER_TARGETS]
    return {node: layer_name(node) for node in nodes}


def layer_name(node: Node) -> str:
    """Return the name of a layer, such as "backbone.stages.0.0.0"."""
    weight: Any = node.args[1]
    return str(weight.target).removesuffix(".weight")


def saturation_limits(node: Node) -> tuple[float, float] | None:
    """Return the range of a node's values that matter if its only reader is a hard swish or hard sigmoid."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    if reader.target == _ATEN.hardswish.default:
        return HARD_SWISH_RANGE
    # In a decomposed hard sigmoid, only a clamp reads the addition
    is_clamped = [user.target for user in reader.users] == [_ATEN.hardtanh.default]
    if reader.target == _ATEN.hardsigmoid.default or (reader.target == _ATEN.add.Tensor and is_clamped):
        return HARD_SIGMOID_RANGE
    return None


class _RangeObserver(Interpreter):
    """Runs a network and records the range of each layer's input and output, (4,), and its number of weights."""

    def __init__(self, model: GraphModule, layers: Mapping[Node, str]) -> None:
        super().__init__(model)
        self.ends = {node: torch.tensor([math.inf, -math.inf] * 2) for node in layers}
        self.num_weights: dict[Node, int] = {}

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node in self.ends:
            (x, weight, *_), _ = self.fetch_args_kwargs_from_env(node)
            limits = saturation_limits(node) or (-math.inf, math.inf)
            batch_ends = [*torch.aminmax(x), *torch.aminmax(result.clamp(*limits))]
            signs = torch.tensor([1, -1, 1, -1])
            self.ends[node] = signs * torch.minimum(
                signs * self.ends[node], signs * torch.stack(batch_ends)
            )
            self.num_weights[node] = weight.numel()
        return result


class _NoiseMeter(Interpreter):
    """Runs a network and keeps each layer's output, and the rounding error that it would have in int8."""

    def __init__(self, model: GraphModule, ends: Mapping[Node, Tensor], weight_bits: int) -> None:
        super().__init__(model)
        self._ends = ends
        self._weight_bits = weight_bits
        self.maps: dict[Node, Tensor] = {}
        self.noise: dict[Node, Tensor] = {}

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node in self._ends:
            self.maps[node] = result
            with torch.no_grad():
                args, kwargs = self.fetch_args_kwargs_from_env(node)
                rounded = self._round(node, args, kwargs)
                self.noise[node] = rounded - result
        return result

    def _round(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute a layer as int8 does."""
        x, weight, *others = args
        input_ends, output_ends = self._ends[node].split(2)
        operator: Any = node.target
        y = operator(
            fake_quantize_map(x, input_ends),
            fake_quantize_weight(weight, self._weight_bits),
            *others,
            **kwargs,
        )
        return fake_quantize_map(y, output_ends)
