"""Post-training quantisation of an ONNX file, for ONNX Runtime. Needs onnx and onnxruntime."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
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

from fbnetv3.deploy.formats.export_formats import INPUT, explained
from fbnetv3.deploy.formats.int8 import leading

_OPERATORS = ["Conv", "Gemm", "MatMul"]  # additions between them become integer too; pools and gates stay float
_PERCENTILE = 99.999
_FLOAT_SHARE = 0.01  # of the weights, those of the first layers
_GATES = {"HardSwish": (-3.0, np.inf), "HardSigmoid": (-3.0, 3.0)}  # beyond these, the answer no longer changes

Ranges = dict[str, tuple[float, float]]


class _Batch(CalibrationDataReader):
    """One batch, as ONNX Runtime's calibration reads it."""

    def __init__(self, batch: np.ndarray) -> None:
        self._remaining = iter([{INPUT: batch}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._remaining, None)


def quantize_onnx(path: Path, batches: Iterable[np.ndarray], reduce_range: bool = False) -> None:
    """Put in a file's place its quantised form: convolutions with int8 weights, a scale for each output channel, and
    uint8 maps, between QuantizeLinear and DequantizeLinear; but for the first layers, see `int8.leading`.

    Maps are unsigned since ONNX Runtime has integer kernels on x86 only for these; on ARM it has them for both.

    Args:
        path: the ONNX file.
        batches: inputs to calibrate on, float32 (N, channels, H, W).
        reduce_range: weights of 7 bits, for x86 without VNNI, where sums of two 8-bit products may saturate.

    Raises:
        ExportError: it cannot be quantised.
    """
    with explained("ONNX Runtime's quantisation"), contextlib.redirect_stdout(io.StringIO()):  # it prints
        model = onnx.load(path)
        ranges = without_saturation(model.graph, _calibrated(path, batches))
        limits = {name: tuple(np.float32(limit) for limit in limits) for name, limits in ranges.items()}
        data = TensorsData(CalibrationMethod.MinMax, limits)
        kinds = (QuantType.QInt8, QuantType.QUInt8)
        kept = _first_layers(model.graph)
        quantizer = QDQQuantizer(model, True, reduce_range, *kinds, data, [], kept, _OPERATORS, {})
        quantizer.quantize_model()
        _shorten_names(quantizer.model.model.graph)
        quantizer.model.save_model_to_file(str(path), False)


def _calibrated(path: Path, batches: Iterable[np.ndarray]) -> Ranges:
    """The range of each convolution's inputs and outputs, without the outermost values."""
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path,
            _OPERATORS,
            augmented_model_path=str(Path(folder) / "calibrated.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"percentile": _PERCENTILE, "symmetric": False},
        )
        for batch in batches:  # one by one: a call keeps all maps of all its batches
            calibrator.collect_data(_Batch(batch))
        found = calibrator.compute_data().data
    limits = {name: about.range_value for name, about in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def _first_layers(graph: onnx.GraphProto) -> list[str]:
    """Names of those that stay float32."""
    counts = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in _OPERATORS]
    sizes = [sum(counts.get(name, 0) for name in node.input[1:2]) for node in layers]
    return [node.name for node in layers[: leading(sizes, _FLOAT_SHARE)]]


def without_saturation(graph: onnx.GraphProto, ranges: Ranges) -> Ranges:
    """The ranges of maps that only a hard swish or a hard sigmoid reads, cut to where these are not constant: steps of
    8 bits are not spent on what makes no difference."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    cut = dict(ranges)
    for name, (low, high) in ranges.items():
        kinds = readers.get(name, set())
        if len(kinds) == 1 and (limits := _GATES.get(next(iter(kinds)))):
            least, most = sorted((max(low, limits[0]), min(high, limits[1])))
            cut[name] = least, most
    return cut


def _shorten_names(graph: onnx.GraphProto) -> None:
    """Numbers for names, which are a tenth of a small network's file; input and output keep theirs."""
    kept = {"", *(value.name for value in (*graph.input, *graph.output))}
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if name in kept else short.setdefault(name, str(len(short)))

    for node in graph.node:
        node.name = ""
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.value_info[:]
