"""ONNX files are what TensorRT's parser reads: its operators and opsets, and sizes that can be fixed."""

import pytest

onnx = pytest.importorskip("onnx")

# Of the list of operators that the ONNX parser of TensorRT 10.15 supports, those that classifiers use; and its opsets
SUPPORTED = {
    "Add", "Clip", "Conv", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Mul", "Relu", "Reshape", "Sigmoid",
}  # fmt: skip
OPSETS = range(9, 25)


def test_the_graph_has_only_operators_and_an_opset_that_tensorrt_reads(exported):
    model = onnx.load(exported("onnx") / "model.onnx")
    (opset,) = model.opset_import
    assert opset.domain in ("", "ai.onnx") and opset.version in OPSETS
    assert {node.op_type for node in model.graph.node} <= SUPPORTED
    assert {tensor.data_type for tensor in model.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,  # shapes
    }


def test_fixing_the_batch_gives_every_map_a_fixed_size(exported):
    """As `trtexec --shapes=images:4x1x32x32` does."""
    model = onnx.load(exported("onnx") / "model.onnx")
    (graph_input,) = model.graph.input
    assert graph_input.name == "images"
    batch, *sizes = graph_input.type.tensor_type.shape.dim
    assert batch.dim_param == "batch" and [size.dim_value for size in sizes] == [1, 32, 32]
    batch.dim_value = 4
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    inferred = {info.name: info.type.tensor_type.shape for info in (*graph.value_info, *graph.output)}
    outputs = [name for node in graph.node for name in node.output]
    assert set(outputs) == set(inferred)
    for name in outputs:
        assert all(size.dim_value > 0 for size in inferred[name].dim), name
    assert [size.dim_value for size in inferred["logits"].dim] == [4, 10]
