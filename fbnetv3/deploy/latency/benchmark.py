"""How fast networks are on this machine, by the runtimes that exported networks are run by."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.arch import ArchDef
from fbnetv3.deploy.exported_folder import DETECTION, check_files, read_description, read_manifest
from fbnetv3.deploy.formats.export_formats import FORMATS, captured, folded
from fbnetv3.deploy.formats.runtimes import OnnxRuntime, Runtime, TorchRuntime, open_runtime
from fbnetv3.deploy.latency.onnx_direct import onnx_graph
from fbnetv3.deploy.latency.timing import MemoryWatch, Timing, time_calls
from fbnetv3.deploy.predictors.classifier_predictor import preprocessing_from
from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.network import build_network

RUNTIMES = ("onnxruntime", "executorch", "torch")


def check_runtime(name: str) -> None:
    """Refuse what is none of `RUNTIMES`.

    Raises:
        UsageError: the text suggests close names.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime '{name}': {suggest(name, RUNTIMES)}")


def runtime_of(name: str, module: nn.Module, shape: Sequence[int]) -> Runtime:
    """What runs a module on this machine's CPU, with as many threads as torch has.

    Args:
        name: one of `RUNTIMES`.
        module: in evaluation mode, from (N, C, H, W) to a map or to (N, classes).
        shape: of its input, every size fixed.

    Raises:
        UsageError: no such runtime, or a batch that it does not take.
        MissingPackageError: its library is not installed; the text says what to install.
        ExportError: the module cannot be exported.
    """
    check_runtime(name)
    if name == "torch":
        return TorchRuntime(module, optimize=True)
    if name == "onnxruntime":
        return OnnxRuntime(onnx_graph(folded(module), tuple(shape)))
    with tempfile.TemporaryDirectory() as folder:
        return open_runtime(*_written(name, module, shape, Path(folder)))


def _written(name: str, module: nn.Module, shape: Sequence[int], folder: Path) -> tuple[str, Path]:
    """A file that a runtime runs a module from, and its format."""
    format = "onnx" if name == "onnxruntime" else name
    path = folder / FORMATS[format].file
    if format == "onnx":
        path.write_bytes(onnx_graph(folded(module), tuple(shape)))
        return format, path
    if shape[0] != 1:
        raise UsageError(f"{name} runs one image at a time")
    program = captured(folded(module, plain_gates=True), torch.zeros(*shape))
    FORMATS[format].write(program, path)
    return format, path


def measure(runtime: Runtime, shape: Sequence[int], **how: Any) -> Timing:
    """Latency of a runtime on random input of that shape; `how` is of `time_calls`."""
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    return time_calls(lambda: runtime.run(batch), **how)


@dataclass(frozen=True)
class Measured:
    """How fast a network is, and what memory it takes.

    Attributes:
        runtime: what ran it, with its version.
        batch, side: of its input.
        timing: in ms a batch.
        memory: bytes that loading and running it added to a process, at most.
    """

    runtime: str
    batch: int
    side: int
    timing: Timing
    memory: int


def measure_network(name: str, defn: ArchDef, *, batch: int = 1, num_classes: int = 1000, **how: float) -> Measured:
    """Measure an architecture with random weights at its resolution, in a process of its own, with as many threads as
    torch has here.

    Args:
        name: one of `RUNTIMES`.
        defn: the architecture.
        batch: images at once.
        num_classes: outputs.
        how: of `time_calls`.

    Raises:
        UsageError: no such runtime, or a batch that it does not take.
        MissingPackageError: its library is not installed; the text says what to install.
        ExportError: it cannot run the network.
    """
    check_runtime(name)
    shape = (batch, 3, defn.resolution, defn.resolution)
    model = build_network(defn, num_classes=num_classes).eval()
    if name == "torch":
        return _apart(partial(TorchRuntime, model, optimize=True), shape, how)
    with tempfile.TemporaryDirectory() as folder:
        return _apart(partial(open_runtime, *_written(name, model, shape, Path(folder))), shape, how)


def measure_exported(folder: str | os.PathLike, *, batch: int = 1, **how: float) -> Measured:
    """Measure what `tools/export_net.py` has made, in a process of its own; see `measure_network`.

    Raises:
        ExportError: no exported folder, or a damaged one.
        UsageError: a batch that it does not take, or a detector.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.task == DETECTION:
        raise UsageError(f"{folder}: is a detector, whose time depends on what it sees; classifiers can be measured")
    wanted, channels, *sides = manifest.input["shape"]
    if wanted not in (None, batch):
        raise UsageError(f"{folder}: takes {wanted} image at a time, not {batch}")
    side = sides[0] or read_description(folder, preprocessing_from)[0].resolution
    return _apart(
        partial(open_runtime, manifest.format, folder / FORMATS[manifest.format].file),
        (batch, channels, side, side),
        how,
    )


def _apart(opened: Callable[[], Runtime], shape: tuple[int, ...], how: Mapping[str, float]) -> Measured:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured_here, opened, shape, dict(how), torch.get_num_threads()).result()


def _measured_here(
    opened: Callable[[], Runtime], shape: tuple[int, ...], how: Mapping[str, float], threads: int
) -> Measured:
    torch.set_num_threads(threads)
    memory = MemoryWatch()
    runtime = opened()
    timing = measure(runtime, shape, **how)
    return Measured(runtime.name, shape[0], shape[-1], timing, memory.peak())
