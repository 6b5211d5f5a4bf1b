"""Lower precisions of LiteRT files, with AI Edge Quantizer. Importing this needs ai_edge_quantizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from fbnetv3.deploy.formats.export_format import INPUT_NAME
from fbnetv3.modeling.qat.fake_quantizers import HARD_SWISH_RANGE
from fbnetv3.modeling.qat.quantized_layers import count_float_layers

_OPERATION = qtyping.TFLOperationName
_LAYERS = (_OPERATION.CONV_2D, _OPERATION.DEPTHWISE_CONV_2D, _OPERATION.FULLY_CONNECTED)
_FLOAT_SHARE = 0.01  # of the weights, in float32 layers
_SIGNATURE = "serving_default"

Ranges = dict[str, dict[str, np.ndarray]]


def store_litert_in_float16(path: Path) -> None:
    """Replace a file with one whose weights are float16; they are computed with in float32, or float16 on GPUs."""
    float16 = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=float16,
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    casting = quantizer.Quantizer(path.read_bytes())
    casting.update_quantization_recipe(".*", _OPERATION.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
    path.write_bytes(casting.quantize().quantized_model)


def quantize_litert(path: Path, batches: Iterable[np.ndarray]) -> None:
    """Quantize layers and additions: int8 weights with a scale per output channel, int8 maps.

    The first layers stay float32 (see `count_float_layers`), and so do hard swishes, means, the products with gates,
    and the network's input and output.
    """
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    static = quantizer.Quantizer(content)
    for operation in (*_LAYERS, _OPERATION.ADD):
        static.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
    for operation, output in _float_layers(model):
        static.update_quantization_recipe(
            f"^{re.escape(output)};?$", operation, None, AlgorithmName.NO_QUANTIZE
        )
    ranges = clamp_to_hard_swish(model, measure_ranges(static, batches))
    path.write_bytes(static.quantize(ranges).quantized_model)


def measure_ranges(static: quantizer.Quantizer, batches: Iterable[np.ndarray]) -> Ranges:
    """Return the smallest "min" and largest "max" of each tensor over all images."""
    ranges: Ranges = {}
    for batch in batches:
        for image in np.split(batch, len(batch)):
            # One call per image: within a call, the quantizer averages the ranges, which would cut off large values
            image_ranges = static.calibrate({_SIGNATURE: [{INPUT_NAME: image}]}, num_threads=1)
            for name, values in image_ranges.items():
                if name in ranges and values:
                    ranges[name]["min"] = np.minimum(ranges[name]["min"], values["min"])
                    ranges[name]["max"] = np.maximum(ranges[name]["max"], values["max"])
                else:
                    ranges[name] = dict(values)
    return ranges


def clamp_to_hard_swish(model: Any, ranges: Ranges) -> Ranges:
    """Limit the ranges of maps that only a hard swish reads to where it is not constant."""
    (graph,) = model.subgraphs
    readers: dict[int, list[str]] = {}
    for operator in graph.operators:
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(_operation_name(model, operator))
    clamped = dict(ranges)
    for tensor, names in readers.items():
        name = graph.tensors[tensor].name.decode()
        if names == [_OPERATION.HARD_SWISH] and clamped.get(name):
            limited = {key: np.maximum(value, HARD_SWISH_RANGE[0]) for key, value in clamped[name].items()}
            clamped[name] = limited
    return clamped


def _float_layers(model: Any) -> list[tuple[qtyping.TFLOperationName, str]]:
    """Return the operation and the output's name of the layers that stay float32."""
    (graph,) = model.subgraphs
    layers = []
    weight_counts = []
    for operator in graph.operators:
        name = _operation_name(model, operator)
        if name in list(_LAYERS):
            layers.append((_OPERATION(name), graph.tensors[operator.outputs[0]].name.decode()))
            weight_counts.append(int(np.prod(graph.tensors[operator.inputs[1]].shape)))
    return layers[: count_float_layers(weight_counts, _FLOAT_SHARE)]


def _operation_name(model: Any, operator: Any) -> str:
    """Return the name of an operator's kind, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    return next(name for name, value in vars(schema.BuiltinOperator).items() if value == code)
