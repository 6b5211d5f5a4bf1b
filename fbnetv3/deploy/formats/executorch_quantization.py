"""Post-training int8 quantization for XNNPACK in ExecuTorch. Importing this needs executorch and torchao."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from fbnetv3.deploy.formats.export_format import as_export_error
from fbnetv3.deploy.formats.quantization import HARD_SIGMOID_RANGE, HARD_SWISH_RANGE, count_float_layers

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.linear.default)
# Share of weights in float32 layers; smaller than for ONNX, because XNNPACK also runs the first layers faster in int8
_FLOAT_SHARE = 0.0025
_MIN_SCALE = 2**-12  # XNNPACK's

Range = tuple[float | None, float | None]


def quantize_executorch(program: ExportedProgram, batches: Iterable[np.ndarray]) -> ExportedProgram:
    """Quantize convolutions and additions for XNNPACK: int8 weights with a scale per output channel, int8 maps.

    The first layers stay float32 (see `count_float_layers`), and so do hard swishes, pools and the products with gates,
    all within the same graph. For the arguments, see `ExportFormat.quantize`.
    """
    # Choose which operators become integer
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = _Quantizer()
    for operator in (*_LAYERS, _ATEN.add.Tensor):
        quantizer.set_operator_type(operator, config)
    with as_export_error("PT2E cannot quantize this network"), torch.no_grad():
        model = prepare_pt2e(program.module(), quantizer)
        # Calibrate one image at a time: the program takes no batches
        for batch in batches:
            for image in torch.from_numpy(batch).split(1):
                model(image)
        return torch.export.export(convert_pt2e(model), program.example_inputs[0])


class _ClampingObserver(HistogramObserver):
    """Observes the range of a feature map, clamped to where the operator that reads the map does not saturate."""

    def __init__(self, limits: Range, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._limits = limits

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x.clamp(*self._limits))
        return x


class _Quantizer(XNNPACKQuantizer):
    """XNNPACK's quantizer with float32 first layers and ranges clamped to where hard activations saturate."""

    def annotate(self, model: GraphModule) -> GraphModule:
        self.set_filter_function(_build_layer_filter(model.graph))
        model = super().annotate(model)
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if node.target != _ATEN.conv2d.default or not annotation or not annotation.output_qspec:
                continue
            if limits := _saturation_limits(node):
                observer = _ClampingObserver.with_args(limits=limits, eps=_MIN_SCALE)
                spec = replace(annotation.output_qspec, observer_or_fake_quant_ctr=observer)
                annotation.output_qspec = spec
        return model


def _build_layer_filter(graph: Graph) -> Callable[[Node], bool]:
    """Build a filter that rejects operators before the first quantized layer; see `count_float_layers`."""
    layers = [node for node in graph.nodes if node.target in _LAYERS]
    weight_counts = [node.args[1].meta["val"].numel() for node in layers]
    quantized = set(layers[count_float_layers(weight_counts, _FLOAT_SHARE) :])
    float_nodes = set(takewhile(lambda node: node not in quantized, graph.nodes))
    return lambda node: node.op != "call_function" or node not in float_nodes


def _saturation_limits(node: Node) -> Range | None:
    """Return the range of a node's values that matter if its only reader is a hard swish or hard sigmoid."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    if reader.target == _ATEN.hardswish.default:
        return HARD_SWISH_RANGE
    # In a decomposed hard sigmoid, only a clamp reads the addition
    is_clamped = [user.target for user in reader.users] == [_ATEN.hardtanh.default]
    return HARD_SIGMOID_RANGE if reader.target == _ATEN.add.Tensor and is_clamped else None
