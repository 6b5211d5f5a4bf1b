"""Post-training quantisation of a captured network, for XNNPACK in ExecuTorch. Needs executorch and torchao."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from fbnetv3.deploy.formats.export_formats import explained, write_executorch
from fbnetv3.deploy.formats.int8 import leading

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv2d.default, _ATEN.linear.default)
_FLOAT_SHARE = 0.0025  # of the weights, those of the first layers; less than in ONNX, since XNNPACK gains by int8 there
_SMALLEST_SCALE = 2**-12  # XNNPACK's


class _CutObserver(HistogramObserver):
    """Finds the range of a map whose values outside limits make no difference."""

    def __init__(self, limits: tuple[float | None, float | None], **arguments: object) -> None:
        super().__init__(**arguments)
        self._limits = limits

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x.clamp(*self._limits))
        return x


class _Quantizer(XNNPACKQuantizer):
    """XNNPACK's, but the first layers stay float32, and steps of 8 bits are not spent on what a hard swish or a hard
    sigmoid makes constant."""

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        self.set_filter_function(_behind_first_layers(model.graph))
        model = super().annotate(model)
        for node in model.graph.nodes:
            note = node.meta.get(Q_ANNOTATION_KEY)
            if node.target == _ATEN.conv2d.default and note and note.output_qspec and (limits := _limits(node)):
                observer = _CutObserver.with_args(limits=limits, eps=_SMALLEST_SCALE)
                note.output_qspec = replace(note.output_qspec, observer_or_fake_quant_ctr=observer)
        return model


def _behind_first_layers(graph: torch.fx.Graph) -> Callable[[torch.fx.Node], bool]:
    """Whether an operation is to be quantised: not those in front of the first layer that is. See `int8.leading`."""
    layers = [node for node in graph.nodes if node.target in _LAYERS]
    first = layers[leading([node.args[1].meta["val"].numel() for node in layers], _FLOAT_SHARE) :]
    position = {node: i for i, node in enumerate(graph.nodes)}
    start = position[first[0]] if first else len(position)
    return lambda node: node.op != "call_function" or position[node] >= start


def _limits(node: torch.fx.Node) -> tuple[float | None, float | None] | None:
    """Between which values of a node the answer still changes, where a hard swish or a hard sigmoid alone reads it."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    if reader.target == _ATEN.hardswish.default:
        return (-3.0, None)
    clamped = [user.target for user in reader.users] == [_ATEN.hardtanh.default]
    return (-3.0, 3.0) if reader.target == _ATEN.add.Tensor and clamped else None  # a hard sigmoid taken apart


def quantize_executorch(program: torch.export.ExportedProgram, path: Path, batches: Iterable[np.ndarray]) -> None:
    """Write an ExecuTorch file whose convolutions and additions are XNNPACK's integer ones: int8 weights with a scale
    for each output channel, int8 maps; but for the first layers, see `int8.leading`. Hard swishes, pools, and the
    gates' products stay float, in the same graph.

    Args:
        program: the network for one image, by `formats.captured`, with plain gates.
        path: the file.
        batches: inputs to calibrate on, float32 (N, channels, H, W).

    Raises:
        ExportError: it cannot be quantised.
    """
    settings = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = _Quantizer()
    for operator in (*_LAYERS, _ATEN.add.Tensor):
        quantizer.set_operator_type(operator, settings)
    with explained("PT2E quantisation"), torch.no_grad():
        model = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            for image in torch.from_numpy(batch).split(1):
                model(image)
        quantised = torch.export.export(convert_pt2e(model), *program.example_inputs[:1])
    write_executorch(quantised, path)
