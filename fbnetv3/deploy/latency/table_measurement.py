"""Fill latency tables: measure every block of a search space, and some networks, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fbnetv3.arch import ArchDef
from fbnetv3.arch.latency_table import (
    HEAD,
    BlockShape,
    LatencyError,
    LatencyTable,
    LatencyTableWriter,
    MeasuredDevice,
    load_latency_table,
)
from fbnetv3.deploy.formats.export_format import require_packages
from fbnetv3.deploy.latency.benchmark import build_runtime, measure_latency, runtime_format
from fbnetv3.deploy.latency.timing import device_name
from fbnetv3.modeling.blocks import BLOCKS
from fbnetv3.modeling.network import build_network

_BLOCK_SECONDS = 0.02
_NETWORK_SECONDS = 1.0


def build_block(shape: BlockShape) -> nn.Module:
    """Build a block or a head with random weights, in evaluation mode."""
    if shape.kind != HEAD:
        return BLOCKS.get(shape.kind)(shape.spec).eval()
    conv = nn.Conv2d(shape.spec.in_channels, shape.spec.out_channels, 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), conv).eval()


def describe_device(runtime: str, batch: int = 1, name: str = "") -> MeasuredDevice:
    """Describe this machine, with torch's number of threads, as the device of a latency table."""
    export_format = runtime_format(runtime)
    package = "torch" if export_format is None else export_format.runtime_package
    with require_packages(package):
        module = import_module(package)
    try:
        runtime_version = version(package)
    except PackageNotFoundError:  # onnxruntime may be installed as onnxruntime-gpu
        runtime_version = module.__version__
    return MeasuredDevice(
        name or device_name(), f"{runtime} {runtime_version}", torch.get_num_threads(), batch
    )


def _runtime_name(device: MeasuredDevice) -> str:
    return device.runtime.split()[0]  # without the version that `describe_device` appends


def fill_table(
    path: Path,
    device: MeasuredDevice,
    shapes: Sequence[BlockShape],
    networks: Iterable[ArchDef] = (),
    *,
    num_classes: int = 1000,
    remeasure: bool = False,
    progress: Callable[[str, int, int], None] = lambda kind, done, total: None,
) -> LatencyTable:
    """Measure what a latency table lacks.

    Each measurement is appended immediately, so that an interrupted run can be resumed.

    Args:
        path: the table's file; created if it does not exist.
        device: this machine, from `describe_device`.
        shapes: the blocks to measure.
        networks: whole networks to measure; from them, the table learns how the latencies of blocks add up.
        num_classes: number of classes of the networks.
        remeasure: whether to measure the table's blocks again; the shorter times are kept.
        progress: called with "blocks" or "networks", how many are measured, and how many there are.

    Raises:
        LatencyError: the table was measured on a different device, or is not a latency table.
    """
    runtime_name = _runtime_name(device)
    writer = LatencyTableWriter(path, device)
    table = load_latency_table(path)
    # Blocks
    missing_shapes = [shape for shape in shapes if remeasure or shape not in table.blocks]
    for done, shape in enumerate(missing_shapes, 1):
        inputs = (device.batch, shape.spec.in_channels, shape.side, shape.side)
        runtime = build_runtime(runtime_name, build_block(shape), inputs)
        timing = measure_latency(runtime, inputs, seconds=_BLOCK_SECONDS, warmup=_BLOCK_SECONDS / 5)
        writer.add_block(shape, timing.median)
        progress("blocks", done, len(missing_shapes))
    # Whole networks
    measured_networks = {(arch, classes) for arch, classes, _ in table.networks}
    missing_networks = [arch for arch in networks if (arch, num_classes) not in measured_networks]
    for done, arch in enumerate(missing_networks, 1):
        latency = _network_latency(runtime_name, arch, num_classes, device.batch)
        writer.add_network(arch, num_classes, latency)
        progress("networks", done, len(missing_networks))
    return load_latency_table(path)


@dataclass(frozen=True)
class TableQuality:
    """How well a table predicts the latency of networks; errors are relative to the measured latencies."""

    num_networks: int
    rank_correlation: float
    median_error: float
    max_error: float


def evaluate_table(
    table: LatencyTable,
    networks: Sequence[ArchDef],
    num_classes: int = 1000,
    *,
    log: Callable[[str], None] = lambda line: None,
) -> TableQuality:
    """Measure two or more networks, and compare the latencies with the predictions of this machine's table.

    `log` is called with a line of text for each network. Raise LatencyError if the table belongs to another device.
    """
    from scipy.stats import spearmanr

    runtime_name = _runtime_name(table.device)
    this_device = describe_device(runtime_name, table.device.batch, table.device.device)
    if this_device != table.device:
        raise LatencyError(f"the table was measured on {table.device}, but this is {this_device}")
    # Predict, measure, and compare
    predicted = np.array([table.predict(arch, num_classes) for arch in networks])
    measured = []
    for arch, prediction in zip(networks, predicted, strict=True):
        measured.append(_network_latency(runtime_name, arch, num_classes, table.device.batch))
        log(f"{arch.name}: predicted {prediction:.2f} ms, measured {measured[-1]:.2f} ms")
    errors = np.abs(predicted - measured) / measured
    correlation = float(spearmanr(predicted, measured).statistic)
    return TableQuality(len(networks), correlation, float(np.median(errors)), float(errors.max()))


def _network_latency(runtime_name: str, arch: ArchDef, num_classes: int, batch: int) -> float:
    """Return the measured latency of a network in milliseconds."""
    inputs = (batch, 3, arch.resolution, arch.resolution)
    network = build_network(arch, num_classes=num_classes).eval()
    runtime = build_runtime(runtime_name, network, inputs)
    return measure_latency(runtime, inputs, seconds=_NETWORK_SECONDS).median
