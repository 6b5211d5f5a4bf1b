"""Write ONNX models of inference modules directly, in milliseconds instead of seconds.

A latency table needs an ONNX model for each of the thousands of blocks in a search space, and `torch.onnx` takes
seconds for each. The blocks consist of few operators, so their graphs can be written directly. They match those of
`write_onnx`; a test compares them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fbnetv3.deploy.formats.export_format import INPUT_NAME, OUTPUT_NAME, require_packages
from fbnetv3.deploy.formats.graph_preparation import GlobalMean
from fbnetv3.deploy.formats.onnx_format import AXIS_NAMES
from fbnetv3.errors import ExportError
from fbnetv3.utils.text import one_line

_OPSET = 18
_LAYER_OPERATORS: dict[type[nn.Module], str] = {
    nn.Hardswish: "HardSwish",
    nn.ReLU: "Relu",
    nn.Sigmoid: "Sigmoid",
    nn.Hardsigmoid: "HardSigmoid",
    GlobalMean: "GlobalAveragePool",
}
_CALL_OPERATORS: dict[Any, str] = {
    operator.add: "Add",
    torch.add: "Add",
    operator.mul: "Mul",
    torch.mul: "Mul",
    "flatten": "Flatten",
}
_LEAVES = (nn.Conv2d, nn.Identity, nn.Dropout, *_LAYER_OPERATORS)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


def build_onnx_model(module: nn.Module, shape: Sequence[int]) -> bytes:
    """Return the content of an ONNX file for a module from `prepare_for_export`.

    Its input has this shape (N, C, H, W), with a dynamic batch size; its output is a map or (N, classes).
    """
    with require_packages("onnx"):
        from onnx import TensorProto, helper, numpy_helper
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        raise ExportError(f"{type(module).__name__}: cannot be traced ({one_line(error, 200)})") from error
    # Translate node by node, in the order of execution
    layers = dict(module.named_modules())
    onnx_nodes, weights = [], []
    value_names: dict[fx.Node, str] = {}  # ONNX name of each node's result
    for node in graph.nodes:
        # Inputs, identities and dropout pass their value through
        inputs = [value_names[argument] for argument in node.all_input_nodes]
        layer = layers[node.target] if node.op == "call_module" else None
        if node.op == "placeholder":
            value_names[node] = INPUT_NAME
            continue
        if isinstance(layer, (nn.Identity, nn.Dropout)):
            value_names[node] = inputs[0]
            continue
        # Every other node becomes an ONNX node; convolutions have weights
        name = OUTPUT_NAME if node.op == "output" else node.name
        value_names[node] = name
        if isinstance(layer, nn.Conv2d):
            for key, value in layer.named_parameters(recurse=False):
                array = value.detach().contiguous().numpy()
                weights.append(numpy_helper.from_array(array, f"{name}.{key}"))
                inputs.append(f"{name}.{key}")
        op_type, attributes = _onnx_operator(node, layer, type(module).__name__)
        onnx_nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
    # Assemble the model
    input_info = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, (AXIS_NAMES[0], *shape[1:]))
    output_info = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, None)
    onnx_graph = helper.make_graph(onnx_nodes, "graph", [input_info], [output_info], weights)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(onnx_graph, opset_imports=[opset], ir_version=10)
    return model.SerializeToString()


def _onnx_operator(node: fx.Node, layer: nn.Module | None, module_name: str) -> tuple[str, dict[str, Any]]:
    """Return the ONNX operator of a traced node, and its attributes."""
    if node.op == "output":
        return "Identity", {}
    if isinstance(layer, nn.Conv2d):
        return "Conv", {
            "kernel_shape": layer.kernel_size,
            "strides": layer.stride,
            "pads": layer.padding * 2,
            "dilations": layer.dilation,
            "group": layer.groups,
        }
    for layer_class, op_type in _LAYER_OPERATORS.items():
        if isinstance(layer, layer_class):
            return op_type, {"alpha": 1 / 6, "beta": 0.5} if op_type == "HardSigmoid" else {}
    if node.op in ("call_function", "call_method") and node.target in _CALL_OPERATORS:
        return _CALL_OPERATORS[node.target], {}
    unsupported = node.target if layer is None else type(layer).__name__
    raise ExportError(f"{module_name}: {unsupported} is not supported when measuring with ONNX Runtime")
