"""int8 quantization for XNNPACK in ExecuTorch. Importing this needs executorch and torchao."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from fbnetv3.deploy.formats.export_format import as_export_error
from fbnetv3.deploy.int8.layer_sensitivity import LAYER_TARGETS, layer_names, saturation_limits
from fbnetv3.modeling.qat.quantized_layers import count_float_layers

_ATEN = torch.ops.aten
_MIN_SCALE = 2**-12  # XNNPACK's

Ends = tuple[float, float]


def quantize_executorch(
    program: ExportedProgram,
    batches: Iterable[np.ndarray],
    float_layers: Collection[str] | float,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> ExportedProgram:
    """Quantize convolutions and additions for XNNPACK: int8 weights with a scale per output channel, int8 maps.

    Hard swishes, pools and the products with gates stay float32, all within the same graph. For the arguments, see
    `ExportFormat.quantize_layers`. `float_layers` may also be a share of the weights, see `count_float_layers`. With
    `ranges`, additions whose range follows from none of them stay float32.
    """
    # Choose which operators become integer
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = _Quantizer(float_layers, ranges or {})
    for operator in (*LAYER_TARGETS, _ATEN.add.Tensor):
        quantizer.set_operator_type(operator, config)
    with as_export_error("PT2E cannot quantize this network"), torch.no_grad():
        model = prepare_pt2e(program.module(), quantizer)
        # Observe the weights, then calibrate one image at a time: the program takes no batches
        if ranges:
            model(*program.example_inputs[0])
        for batch in batches:
            for image in torch.from_numpy(batch).split(1):
                model(image)
        return torch.export.export(convert_pt2e(model), program.example_inputs[0])


class _ClampingObserver(HistogramObserver):
    """Observes the range of a feature map, clamped to where the operator that reads the map does not saturate."""

    def __init__(self, limits: Ends, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._limits = limits

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x.clamp(*self._limits))
        return x


class _Quantizer(XNNPACKQuantizer):
    """XNNPACK's quantizer with some float32 layers, and given ranges or those clamped to where activations saturate."""

    def __init__(
        self, float_layers: Collection[str] | float, ranges: Mapping[str, Sequence[float]]
    ) -> None:
        super().__init__()
        self._float_layers = float_layers
        self._ranges = ranges

    def annotate(self, model: GraphModule) -> GraphModule:
        layers = layer_names(model)
        map_ranges = _ranges_of_maps(layers, self._ranges)
        int8_layers = _int8_layers(layers, self._float_layers)
        self.set_filter_function(_build_filter(int8_layers, map_ranges))
        model = super().annotate(model)
        for node in model.graph.nodes:
            annotation: Any = node.meta.get(Q_ANNOTATION_KEY)
            if not annotation:
                continue
            # Set the ranges that are known
            for source in annotation.input_qspec_map:
                if source in map_ranges:
                    annotation.input_qspec_map[source] = _fixed_range(*map_ranges[source])
            if annotation.output_qspec and node in map_ranges:
                annotation.output_qspec = _fixed_range(*map_ranges[node])
            elif annotation.output_qspec and node in layers and (limits := saturation_limits(node)):
                observer = _ClampingObserver.with_args(limits=limits, eps=_MIN_SCALE)
                spec = replace(annotation.output_qspec, observer_or_fake_quant_ctr=observer)
                annotation.output_qspec = spec
        return model


def _int8_layers(layers: Mapping[Node, str], float_layers: Collection[str] | float) -> set[Node]:
    if isinstance(float_layers, Collection):
        return {node for node, name in layers.items() if name not in float_layers}
    weights: list[Any] = [node.args[1] for node in layers]
    weight_counts = [weight.meta["val"].numel() for weight in weights]
    return set(list(layers)[count_float_layers(weight_counts, float_layers) :])


def _ranges_of_maps(layers: Mapping[Node, str], ranges: Mapping[str, Sequence[float]]) -> dict[Node, Ends]:
    """Return the ranges of feature maps; one between two layers has that of the first layer's output."""
    trained = [(node, ranges[name]) for node, name in layers.items() if name in ranges]
    inputs: dict[Any, Ends] = {node.args[0]: (low, high) for node, (low, high, _, _) in trained}
    return inputs | {node: (low, high) for node, (_, _, low, high) in trained}


def _build_filter(int8_layers: Collection[Node], map_ranges: Mapping[Node, Ends]) -> Callable[[Node], bool]:
    """Build a filter that accepts int8 layers, and additions next to one whose ranges are known or observed."""

    def accepts(node: Node) -> bool:
        if node.target in LAYER_TARGETS:
            return node in int8_layers
        if node.target != _ATEN.add.Tensor:
            return True
        terms = [term for term in node.args if isinstance(term, Node)]
        if map_ranges and not all(part in map_ranges for part in (node, *terms)):
            return False
        return any(neighbor in int8_layers for neighbor in (*terms, *node.users))

    return accepts


def _fixed_range(low: float, high: float) -> FixedQParamsQuantizationSpec:
    """Return a specification of int8 feature maps with this range, extended to include 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, _MIN_SCALE)
    zero_point = min(max(round(-low / scale), 0), 255) - 128
    return FixedQParamsQuantizationSpec(
        torch.int8, scale, zero_point, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
    )
