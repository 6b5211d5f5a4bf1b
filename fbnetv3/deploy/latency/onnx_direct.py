"""ONNX graphs of inference modules in milliseconds, for measuring thousands of them.

`torch.onnx` takes seconds for each; for the few operations that the blocks consist of, a graph can be written directly.
It is the one that `write_onnx` gives: the tests compare the two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fbnetv3.deploy.formats.export_formats import AXES, INPUT, OUTPUT, Mean, needed
from fbnetv3.errors import ExportError

_OPSET = 18
_LEAVES = (nn.Conv2d, nn.Hardswish, nn.ReLU, nn.Hardsigmoid, nn.Sigmoid, nn.Identity, nn.Dropout, Mean)
_ACTIVATIONS = {nn.Hardswish: "HardSwish", nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Hardsigmoid: "HardSigmoid"}
_BINARY: dict[Callable[..., Any], str] = {
    **dict.fromkeys((operator.add, torch.add), "Add"),
    **dict.fromkeys((operator.mul, torch.mul), "Mul"),
}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


def onnx_graph(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    """An ONNX file of a module that `folded` has given.

    Args:
        module: from (N, C, H, W) to a map, or to (N, classes).
        shape: of its input; the batch may be another when it runs.

    Returns:
        The file's bytes, with input `images` and output `logits`.

    Raises:
        MissingPackageError: onnx is not installed.
        ExportError: the module has an operation that is not known here.
    """
    with needed("onnx"):
        from onnx import TensorProto, helper, numpy_helper
    try:
        traced = _Tracer().trace(module)
    except Exception as error:
        raise ExportError(f"{type(module).__name__}: cannot be traced ({str(error)[:200]})") from error
    layers = dict(module.named_modules())
    nodes, weights = [], []
    names: dict[Any, str] = {}
    for node in traced.nodes:
        inputs = [names[argument] for argument in node.all_input_nodes]
        layer = layers[node.target] if node.op == "call_module" else None
        if node.op == "placeholder" or isinstance(layer, (nn.Identity, nn.Dropout)):
            names[node] = inputs[0] if inputs else INPUT
            continue
        names[node] = name = OUTPUT if node.op == "output" else node.name
        parameters = dict(layer.named_parameters(recurse=False)) if isinstance(layer, nn.Conv2d) else {}
        for key, value in parameters.items():
            weights.append(numpy_helper.from_array(value.detach().contiguous().numpy(), f"{name}.{key}"))
        kind, attributes = _operation(node, layer, type(module).__name__)
        nodes.append(helper.make_node(kind, [*inputs, *(f"{name}.{key}" for key in parameters)], [name], **attributes))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (AXES[0], *shape[1:]))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    return model.SerializeToString()


def _operation(node: fx.Node, layer: nn.Module | None, owner: str) -> tuple[str, dict[str, Any]]:
    """ONNX' name of a traced operation, and its attributes.

    Raises:
        ExportError: it is not known here.
    """
    if node.op == "output":
        return "Identity", {}
    if isinstance(layer, nn.Conv2d):
        return "Conv", _conv_attributes(layer)
    if isinstance(layer, Mean):
        return "GlobalAveragePool", {}
    for activation, kind in _ACTIVATIONS.items():
        if isinstance(layer, activation):
            return kind, {"alpha": 1 / 6, "beta": 0.5} if kind == "HardSigmoid" else {}
    if node.op == "call_function" and node.target in _BINARY:
        return _BINARY[node.target], {}
    if node.op == "call_method" and node.target == "flatten":
        return "Flatten", {}
    raise ExportError(
        f"{owner}: {node.target if layer is None else type(layer).__name__} is not known to this exporter"
    )


def _conv_attributes(layer: nn.Conv2d) -> dict[str, Any]:
    return {
        "kernel_shape": layer.kernel_size,
        "strides": layer.stride,
        "pads": layer.padding * 2,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
