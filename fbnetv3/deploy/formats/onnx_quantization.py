"""Post-training int8 quantization of an ONNX file for ONNX Runtime. Importing this needs onnx and onnxruntime."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    TensorsData,
    create_calibrator,
)

from fbnetv3.deploy.formats.export_format import INPUT_NAME, as_export_error
from fbnetv3.modeling.qat.fake_quantizers import HARD_SIGMOID_RANGE, HARD_SWISH_RANGE
from fbnetv3.modeling.qat.quantized_layers import count_float_layers

# ONNX Runtime fuses additions between these into integer ones; pools and gates stay float32
_OPERATORS = ["Conv", "Gemm", "MatMul"]
_PERCENTILE = 99.999
_FLOAT_SHARE = 0.01  # share of the weights in float32 layers
_SATURATION = {"HardSwish": HARD_SWISH_RANGE, "HardSigmoid": HARD_SIGMOID_RANGE}

# Smallest and largest value of each feature map, by name
Ranges = dict[str, tuple[float, float]]


def quantize_onnx(
    path: Path,
    batches: Iterable[np.ndarray],
    reduce_range: bool,
    *,
    input_name: str = INPUT_NAME,
    float_layers: Collection[str] | None = None,
    layer_ranges: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Replace a file with its quantized version, with QuantizeLinear and DequantizeLinear around each layer.

    Convolutions get int8 weights with a scale per output channel, and uint8 feature maps. Maps are unsigned because on
    x86 ONNX Runtime has integer kernels only for these; on ARM it has them for both. For the arguments, see
    `ExportFormat.quantize_layers`. By default the first layers stay float32, see `count_float_layers`.
    """
    # Discard what the calibrator prints
    with (
        as_export_error("ONNX Runtime cannot quantize this network"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        model = onnx.load(path)
        if layer_ranges:
            ranges = _ranges_of_maps(model.graph, layer_ranges)
        else:
            ranges = clamp_saturated_ranges(model.graph, _calibrate(path, batches, input_name))
        limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
        # Quantize with these ranges
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=[],
            nodes_to_exclude=_float_nodes(model.graph, float_layers),
            op_types_to_quantize=_OPERATORS,
            extra_options={},
        )
        quantizer.quantize_model()
        _shorten_names(quantizer.model.model.graph)
        quantizer.model.save_model_to_file(str(path), False)


class _SingleBatchReader(CalibrationDataReader):
    def __init__(self, input_name: str, batch: np.ndarray) -> None:
        self._remaining = iter([{input_name: batch}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._remaining, None)


def _calibrate(path: Path, batches: Iterable[np.ndarray], input_name: str) -> Ranges:
    """Return the range of each convolution's inputs and outputs, without outliers."""
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path,
            _OPERATORS,
            augmented_model_path=str(Path(folder) / "calibrated.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"percentile": _PERCENTILE, "symmetric": False},
        )
        # One batch at a time: each call keeps the feature maps of all its batches
        for batch in batches:
            calibrator.collect_data(_SingleBatchReader(input_name, batch))
        tensors = calibrator.compute_data().data
    ranges = {name: tensor.range_value for name, tensor in tensors.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}


def _ranges_of_maps(graph: onnx.GraphProto, layer_ranges: Mapping[str, Sequence[float]]) -> Ranges:
    """Return the ranges of feature maps; one between two layers has that of the first layer's output."""
    layers = [(node, layer_ranges[name]) for node, name in _layers(graph) if name in layer_ranges]
    inputs = {node.input[0]: (low, high) for node, (low, high, _, _) in layers}
    outputs = {node.output[0]: (low, high) for node, (_, _, low, high) in layers}
    return inputs | outputs


def _layers(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str]]:
    """Return the nodes with weights that can be quantized, and the names of their layers in the network."""
    nodes = [node for node in graph.node if node.op_type in _OPERATORS]
    return [(node, node.input[1].removesuffix(".weight")) for node in nodes]


def _float_nodes(graph: onnx.GraphProto, float_layers: Collection[str] | None) -> list[str]:
    """Return the names of the nodes that stay float32: those of the layers, or by default the first ones."""
    layers = _layers(graph)
    if float_layers is not None:
        return [node.name for node, layer in layers if layer in float_layers]
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    weight_counts = [sizes.get(node.input[1], 0) for node, _ in layers]
    return [node.name for node, _ in layers[: count_float_layers(weight_counts, _FLOAT_SHARE)]]


def clamp_saturated_ranges(graph: onnx.GraphProto, ranges: Ranges) -> Ranges:
    """Clamp the ranges of maps that only a hard swish or hard sigmoid reads to where the activation is not constant."""
    # Find the operators that read each feature map
    reader_types: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            reader_types.setdefault(name, set()).add(node.op_type)
    clamped = dict(ranges)
    for name, (low, high) in ranges.items():
        types = reader_types.get(name, set())
        limits = _SATURATION.get(next(iter(types))) if len(types) == 1 else None
        if limits:
            lower_limit, upper_limit = limits
            # Sort the limits, which are reversed if the whole range is saturated
            ends = (max(low, lower_limit), min(high, upper_limit))
            clamped[name] = (min(ends), max(ends))
    return clamped


def _shorten_names(graph: onnx.GraphProto) -> None:
    """Replace all names except the input's and the output's with numbers; names can take up a tenth of a small file."""
    fixed = {"", *(value.name for value in (*graph.input, *graph.output))}
    numbers: dict[str, str] = {}

    def shorten(name: str) -> str:
        return name if name in fixed else numbers.setdefault(name, str(len(numbers)))

    for node in graph.node:
        node.name = ""
        node.input[:] = map(shorten, node.input)
        node.output[:] = map(shorten, node.output)
    for tensor in graph.initializer:
        tensor.name = shorten(tensor.name)
    del graph.value_info[:]
