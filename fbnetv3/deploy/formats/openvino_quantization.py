"""Post-training int8 quantization of an OpenVINO graph with NNCF. Importing this needs nncf and openvino."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    OverflowFix,
    QuantizationParameters,
)

from fbnetv3.deploy.formats.export_format import as_export_error
from fbnetv3.deploy.formats.openvino_format import read_graph, save_graph, weighted_layers
from fbnetv3.modeling.qat.quantized_layers import count_float_layers

_FLOAT_SHARE = 0.01  # share of the weights in float32 layers
_LAYERS = {"Convolution", "GroupConvolution", "MatMul"}


def quantize_openvino(path: Path, batches: Iterable[np.ndarray], reduce_range: bool) -> None:
    """Replace a graph with its quantized version.

    Convolutions and matrix products get int8 weights with a scale per output channel, and 8-bit inputs with a scale
    and a zero point per map; the first layers stay float32, see `count_float_layers`. So do additions, gates,
    activations and pools, whose maps would only be converted back and forth.

    Args:
        path: the graph (.xml).
        batches: images to calibrate on, as the network's input.
        reduce_range: whether int8 weights have 7 bits.
    """
    graph = read_graph(path)
    layers = weighted_layers(graph)
    weight_counts = [int(np.prod(layer.input_value(1).get_shape())) for layer in layers]
    float_layers = layers[: count_float_layers(weight_counts, _FLOAT_SHARE)]
    float_types = {op.get_type_name() for op in graph.get_ops()} - _LAYERS
    # The samples are kept, because NNCF reads them several times
    samples = list(batches)
    with as_export_error("NNCF cannot quantize this network"), _silence_nncf():
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(samples),
            subset_size=len(samples),
            # Scales and zero points: hard swishes are only slightly negative
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(
                names=[layer.get_friendly_name() for layer in float_layers],
                types=sorted(float_types),
                validate=False,
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE if reduce_range else OverflowFix.DISABLE,
                # With scales per channel, OpenVINO computes depthwise convolutions in float32
                activations_quantization_params=QuantizationParameters(per_channel=False),
            ),
        )
    save_graph(quantized, path)


@contextlib.contextmanager
def _silence_nncf() -> Any:
    """Discard progress bars, and messages less serious than errors, within the block."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
