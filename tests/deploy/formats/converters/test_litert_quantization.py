"""Ranges for int8 in LiteRT: the extremes of all images, as far as they matter."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer", reason="pip install 'fbnetv3[converters]'")

from ai_edge_litert import schema_py_generated as schema

from fbnetv3.deploy.formats.converters.litert_quantization import clamp_to_hard_swish, measure_ranges


def array_range(low, high):
    return {"min": np.array([low]), "max": np.array([high])}


def test_ranges_are_the_extremes_of_all_images():
    ranges = iter([array_range(-1.0, 2.0), array_range(-3.0, 1.0), array_range(0.0, 4.0)])
    quantizer = SimpleNamespace(calibrate=lambda *_, **__: {"map": next(ranges), "weights": {}})
    batches = [np.zeros((2, 1, 8, 8), np.float32), np.zeros((1, 1, 8, 8), np.float32)]
    assert measure_ranges(quantizer, batches) == {"map": array_range(-3.0, 4.0), "weights": {}}


def test_maps_that_only_a_hard_swish_reads_are_clamped():
    kinds = schema.BuiltinOperator
    model = schema.ModelT()
    model.operatorCodes = [schema.OperatorCodeT() for _ in range(2)]
    model.operatorCodes[0].builtinCode, model.operatorCodes[1].builtinCode = kinds.HARD_SWISH, kinds.ADD
    graph = schema.SubGraphT()
    graph.tensors = []
    for name in (b"a", b"b", b"c", b"d"):
        tensor = schema.TensorT()
        tensor.name = name
        graph.tensors.append(tensor)
    graph.operators = []
    # The addition reads c, too
    for code, inputs in ((0, [0]), (0, [2]), (1, [1, 2])):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs = code, inputs
        graph.operators.append(operator)
    model.subgraphs = [graph]
    ranges = {name: array_range(-9.0, 5.0) for name in "abcd"}
    expected = {**ranges, "a": array_range(-3.0, 5.0)}
    assert clamp_to_hard_swish(model, ranges) == expected
    below = {"a": array_range(-9.0, -5.0)}
    assert clamp_to_hard_swish(model, below) == {"a": array_range(-3.0, -3.0)}
