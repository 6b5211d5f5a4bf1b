"""Tables of latencies: every block of a search space, and some whole networks, measured on this machine."""

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
    Device,
    LatencyError,
    LatencyTable,
    TableWriter,
    load_latency_table,
)
from fbnetv3.deploy.formats.export_formats import needed
from fbnetv3.deploy.latency.benchmark import check_runtime, measure, runtime_of
from fbnetv3.deploy.latency.timing import device_name
from fbnetv3.errors import UsageError
from fbnetv3.modeling.blocks import BLOCKS
from fbnetv3.modeling.network import build_network

# Seconds that a block is called for, and a whole network.
_BLOCK, _NETWORK = 0.02, 1.0


def module_of(shape: BlockShape) -> nn.Module:
    """A block, or a head, with random weights, in evaluation mode."""
    if shape.kind != HEAD:
        return BLOCKS.get(shape.kind)(shape.spec).eval()
    conv = nn.Conv2d(shape.spec.in_channels, shape.spec.out_channels, 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), conv).eval()


def this_device(name: str, batch: int = 1, called: str = "") -> Device:
    """What a table made on this machine with torch's present number of threads is of.

    Args:
        name: one of `RUNTIMES`.
        batch: images at once.
        called: instead of the processor's name.

    Raises:
        UsageError: no such runtime.
        MissingPackageError: its library is not installed; the text says what to install.
    """
    check_runtime(name)
    with needed(name):
        module = import_module(name)
    try:
        found = version(name)
    except PackageNotFoundError:  # as where onnxruntime comes as onnxruntime-gpu
        found = module.__version__
    return Device(called or device_name(), f"{name} {found}", torch.get_num_threads(), batch)


def fill_table(
    path: Path,
    device: Device,
    shapes: Sequence[BlockShape],
    networks: Iterable[ArchDef] = (),
    *,
    num_classes: int = 1000,
    again: bool = False,
    watch: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> LatencyTable:
    """Measure what a table's file lacks, and add it line by line.

    Args:
        path: the file; it is made where it is not there.
        device: this one, see `this_device`.
        shapes: blocks that the table is to have.
        networks: whole ones, from which it is learned how blocks add up.
        num_classes: of these.
        again: measure the blocks that it has once more; the shorter time will count.
        watch: told what is measured, how many are done, and of how many.

    Raises:
        LatencyError: the file is no table, or another device's.
        ExportError: the runtime cannot run a block.
    """
    runtime = device.runtime.split()[0]
    with TableWriter(path, device) as writer:
        table = load_latency_table(path)
        wanted = [shape for shape in shapes if again or shape not in table.blocks]
        for done, shape in enumerate(wanted, 1):
            inputs = (device.batch, shape.spec.in_channels, shape.side, shape.side)
            block = runtime_of(runtime, module_of(shape), inputs)
            writer.block(shape, measure(block, inputs, seconds=_BLOCK, warm_up=_BLOCK / 5).median)
            watch("blocks", done, len(wanted))
        known = {(defn, classes) for defn, classes, _ in table.networks}
        remaining = [defn for defn in networks if (defn, num_classes) not in known]
        for done, defn in enumerate(remaining, 1):
            writer.network(defn, num_classes, _network_ms(runtime, defn, num_classes, device.batch))
            watch("networks", done, len(remaining))
    return load_latency_table(path)


@dataclass(frozen=True)
class Quality:
    """How near a table's predictions are to what networks take.

    Attributes:
        networks: how many were compared.
        rank: Spearman's correlation of predicted and measured latencies.
        median_error, largest_error: in parts of the measured latency.
    """

    networks: int
    rank: float
    median_error: float
    largest_error: float


def table_quality(
    table: LatencyTable,
    networks: Sequence[ArchDef],
    num_classes: int = 1000,
    *,
    watch: Callable[[str], None] = lambda line: None,
) -> Quality:
    """Measure networks here, and compare that with a table's predictions.

    Args:
        table: of this machine.
        networks: which it has not learned from; at least two.
        num_classes: of these.
        watch: told a line for each.

    Raises:
        LatencyError: the table is of another machine, or lacks a block.
        UsageError: fewer than two networks.
    """
    if len(networks) < 2:
        raise UsageError(f"{len(networks)} networks cannot be ranked")
    runtime = table.device.runtime.split()[0]
    if (here := this_device(runtime, table.device.batch, table.device.device)) != table.device:
        raise LatencyError(f"the table is of {table.device}; this is {here}")
    predicted = np.array([table.of(defn, num_classes) for defn in networks])
    measured = []
    for defn, expected in zip(networks, predicted, strict=True):
        measured.append(_network_ms(runtime, defn, num_classes, table.device.batch))
        watch(f"{defn.name}: predicted {expected:.2f} ms, measured {measured[-1]:.2f} ms")
    errors = np.abs(predicted - measured) / measured
    rank = float(np.corrcoef(predicted.argsort().argsort(), np.argsort(np.argsort(measured)))[0, 1])
    return Quality(len(networks), rank, float(np.median(errors)), float(errors.max()))


def _network_ms(runtime: str, defn: ArchDef, num_classes: int, batch: int) -> float:
    inputs = (batch, 3, defn.resolution, defn.resolution)
    whole = runtime_of(runtime, build_network(defn, num_classes=num_classes).eval(), inputs)
    return measure(whole, inputs, seconds=_NETWORK).median
