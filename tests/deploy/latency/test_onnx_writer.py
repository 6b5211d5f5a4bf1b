"""Directly written ONNX models equal exported ones."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fbnetv3.arch import get_arch
from fbnetv3.arch.latency_table import block_shapes
from fbnetv3.deploy.formats.export_format import export_program
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime, write_onnx
from fbnetv3.deploy.latency.onnx_writer import build_onnx_model
from fbnetv3.deploy.latency.table_measurement import build_block
from fbnetv3.errors import ExportError
from fbnetv3.modeling import build_network


def test_the_graph_equals_an_exported_one(tmp_path):
    torch.manual_seed(0)
    network = build_network(get_arch("fbnetv3_a0_cifar"), num_classes=10).eval()
    module = prepare_for_export(network)
    write_onnx(export_program(module, torch.zeros(2, 3, 32, 32), [0]), tmp_path / "exported.onnx")
    exported = onnx.load(str(tmp_path / "exported.onnx"))
    direct = onnx.load_from_string(build_onnx_model(module, (1, 3, 32, 32)))

    def layers(model):
        shape_operators = ("Identity", "Flatten", "Reshape")
        return [node.op_type for node in model.graph.node if node.op_type not in shape_operators]

    assert layers(direct) == layers(exported)


@pytest.mark.parametrize("name", ["fbnetv3_b", "fbnetv3_a_det"])
def test_every_kind_of_block_and_the_head(name):
    rng = np.random.default_rng(0)
    for shape in {shape.kind: shape for shape in block_shapes(get_arch(name))}.values():
        module = build_block(shape)
        x = rng.standard_normal((2, shape.spec.in_channels, 9, 9), np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        output = OnnxRuntime(build_onnx_model(prepare_for_export(module), x.shape)).run(x)
        assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_unsupported_operator_is_named():
    with pytest.raises(ExportError, match="GELU is not supported"):
        build_onnx_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()), (1, 3, 8, 8))
