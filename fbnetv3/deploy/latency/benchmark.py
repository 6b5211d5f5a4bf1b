"""Measure latency and memory of networks and exported folders on this machine."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.arch import ArchDef
from fbnetv3.data.preprocessing_values import preprocessing_from_dict
from fbnetv3.deploy.exported_folder import DETECTION, read_manifest, read_preprocessing
from fbnetv3.deploy.formats.export_format import (
    FLOAT32,
    FORMATS,
    ExportFormat,
    Runtime,
    export_program,
    get_format,
)
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.latency.onnx_writer import build_onnx_model
from fbnetv3.deploy.latency.timing import PeakMemoryMeter, Timing, time_calls
from fbnetv3.deploy.predictor_loading import load
from fbnetv3.deploy.runtime_choice import runtime_openers
from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.network import build_network
from fbnetv3.modeling.torch_device import CPU, find_device
from fbnetv3.utils.files import expand_path

# Runtimes that are not named after a format: torch runs an optimized copy of the network, onnxruntime the format "onnx"
TORCH = "torch"
ONNX_RUNTIME = "onnxruntime"
_NOT_MEASURED = {"web"}  # formats that run elsewhere

OpenRuntime = Callable[[], Runtime]


def runtime_names() -> list[str]:
    """Return the names of the runtimes to measure with: torch, and one for each format in `FORMATS` that runs here."""
    formats = set(FORMATS.names()) - _NOT_MEASURED
    return sorted([TORCH, *(ONNX_RUNTIME if name == "onnx" else name for name in formats)])


@dataclass(frozen=True)
class Measurement:
    """The latency of a network per batch, and its peak memory: what loading and running it adds to a process.

    A GPU's own memory is not included.
    """

    runtime: str
    resolution: int
    timing: Timing
    peak_memory_bytes: int


def runtime_format(name: str) -> ExportFormat | None:
    """Return the format of the files that a runtime runs; None for torch, which needs no file."""
    if name not in runtime_names():
        raise UsageError(f"unknown runtime '{name}': {suggest(name, runtime_names())}")
    if name == TORCH:
        return None
    return get_format("onnx" if name == ONNX_RUNTIME else name)


def build_runtime(name: str, module: nn.Module, shape: Sequence[int]) -> Runtime:
    """Prepare a module in evaluation mode for inputs of shape (N, C, H, W), with as many threads as torch uses."""
    if name == ONNX_RUNTIME:
        # From memory, because ONNX Runtime may open the model again later, to split a batch
        return OnnxRuntime(build_onnx_model(prepare_for_export(module), shape))
    with tempfile.TemporaryDirectory() as folder:
        return _runtime_opener(name, module, shape, Path(folder))()


def _runtime_opener(
    name: str, module: nn.Module, shape: Sequence[int], folder: Path, device: str = CPU
) -> OpenRuntime:
    """Write a module for a runtime, and return a function that opens it, which can be sent to another process."""
    export_format = runtime_format(name)
    if export_format is None:
        find_device(device)  # before a process is started
        return partial(TorchRuntime, module, optimize=True, device=device)
    if shape[0] != 1 and not export_format.supports_any_batch:
        raise UsageError(f"{name} runs one image at a time: use batch 1 (--batch)")
    path = folder / export_format.file_name
    (open_runtime,) = runtime_openers(export_format, path, FLOAT32, None, device).values()
    prepared = export_format.prepare(module)
    if name == ONNX_RUNTIME:
        # Much faster than tracing; see `onnx_writer`
        path.write_bytes(build_onnx_model(prepared, shape))
    else:
        export_format.import_packages()
        export_format.write(export_program(prepared, torch.zeros(*shape)), path)
    return open_runtime


def measure_latency(runtime: Runtime, shape: Sequence[int], **timing_options: Any) -> Timing:
    """Time a runtime on random input of this shape; the options are those of `time_calls`.

    The logits are arrays of the CPU: on a GPU, each call includes the copies there and back.
    """
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    return time_calls(lambda: runtime.run(batch), **timing_options)


def measure_network(
    runtime: str,
    arch: ArchDef,
    *,
    batch: int = 1,
    num_classes: int = 1000,
    device: str = CPU,
    **timing_options: Any,
) -> Measurement:
    """Measure an architecture with random weights in a separate process, with as many threads as torch uses here.

    The images have the architecture's resolution. `timing_options` are those of `time_calls`. Raise a UsageError if the
    runtime cannot use the device; see `runtime_openers`.
    """
    shape = (batch, 3, arch.resolution, arch.resolution)
    model = build_network(arch, num_classes=num_classes).eval()
    with tempfile.TemporaryDirectory() as folder:
        open_runtime = _runtime_opener(runtime, model, shape, Path(folder), device)
        return _measure_in_process(open_runtime, shape, timing_options)


def measure_exported(
    folder: str | os.PathLike,
    *,
    batch: int = 1,
    runtime: str | None = None,
    device: str = CPU,
    **timing_options: Any,
) -> Measurement:
    """Measure an exported classifier in a separate process; see `measure_network`, and `load` for the runtime."""
    folder = expand_path(folder)
    manifest = read_manifest(folder)
    if manifest.task == DETECTION:
        raise UsageError(
            f"{folder} is a detector, whose latency depends on the image; pass an exported classifier"
        )
    # None is a dynamic size
    fixed_batch, channels, *sides = manifest.input["shape"]
    if fixed_batch not in (None, batch):
        raise UsageError(f"{folder} takes batches of {fixed_batch}, not {batch}")
    side = sides[0] or read_preprocessing(folder, preprocessing_from_dict)[0].resolution
    # Open the file in the new process only
    export_format = get_format(manifest.format)
    path = folder / export_format.file_name
    openers = runtime_openers(export_format, path, manifest.precision, runtime, device)
    open_runtime = partial(_load_runtime, folder, runtime, device)
    if len(openers) == 1:
        (open_runtime,) = openers.values()  # type: ignore[assignment]
    return _measure_in_process(open_runtime, (batch, channels, side, side), timing_options)


def _load_runtime(folder: Path, runtime: str | None, device: str) -> Runtime:
    return load(folder, runtime, device).runtime  # type: ignore[return-value]


def _measure_in_process(*arguments: Any) -> Measurement:
    """Call `_measure` in a new process, whose memory is then only the network's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.submit(_measure, *arguments).result()


def _measure(
    open_runtime: OpenRuntime, shape: Sequence[int], timing_options: dict[str, Any]
) -> Measurement:
    memory = PeakMemoryMeter()
    runtime = open_runtime()
    timing = measure_latency(runtime, shape, **timing_options)
    return Measurement(runtime.name, shape[-1], timing, memory.peak())
