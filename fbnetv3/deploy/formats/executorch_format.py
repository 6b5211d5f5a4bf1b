"""ExecuTorch files for phones, with XNNPACK's kernels. The packages executorch and torchao are imported when used."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import (
    FLOAT32,
    INT8,
    ExportFormat,
    as_export_error,
    require_packages,
)
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export


class ExecuTorchFormat(ExportFormat):
    """`model.pte`: takes one image of a fixed size, and has the whole network in one XNNPACK graph."""

    suffix = ".pte"
    packages = ("executorch",)
    runtime_package = "executorch"
    supports_any_batch = False
    supports_any_size = False
    precisions = (FLOAT32, INT8)
    selects_float_layers = True
    # Smaller than for ONNX, because XNNPACK also runs the first layers faster in int8
    float_share = 0.0025

    def prepare(self, model: nn.Module) -> nn.Module:
        """Prepare a network with hard sigmoids decomposed, since XNNPACK has none."""
        return prepare_for_export(model, decompose_hard_sigmoid=True)

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write a file that uses XNNPACK wherever XNNPACK has the operator."""
        with as_export_error("ExecuTorch cannot export this network"):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
        with path.open("wb") as f:
            lowered.write_to_file(f)

    def open(self, path: Path, precision: str = FLOAT32) -> ExecuTorchRuntime:
        """Load the file in ExecuTorch's runtime for Python."""
        return ExecuTorchRuntime(path)

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Replace the file with the network that `quantize_executorch` returns."""
        with require_packages("executorch", "torchao"):
            from fbnetv3.deploy.formats.executorch_quantization import quantize_executorch
        self.write(quantize_executorch(program, batches, self.float_share), path)

    def quantize_layers(
        self,
        program: ExportedProgram,
        path: Path,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
        *,
        float_layers: Collection[str],
        ranges: Mapping[str, Sequence[float]],
    ) -> None:
        """Replace the file with the network that `quantize_executorch` returns."""
        with require_packages("executorch", "torchao"):
            from fbnetv3.deploy.formats.executorch_quantization import quantize_executorch
        self.write(quantize_executorch(program, batches, float_layers, ranges), path)


class ExecuTorchRuntime:
    """ExecuTorch's runtime for Python, with as many threads as torch uses. Pickling stores the path of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with require_packages("executorch"):
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        self.name = f"executorch {version('executorch')}"
        # A private function of executorch 1.5; without it, ExecuTorch chooses the number of threads
        if hasattr(portable_lib, "_unsafe_reset_threadpool"):
            with _silence_native_stderr():
                portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
        with as_export_error(f"{path}: {self.name} cannot read it; export it again"):
            self._program = Runtime.get().load_program(path)
            self._method = self._program.load_method("forward")

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), one after another; return logits, float32 (N, classes)."""
        images = torch.from_numpy(batch).split(1)
        return np.concatenate([self._method.execute([image])[0].numpy().copy() for image in images])

    def __reduce__(self) -> tuple[Any, ...]:
        return ExecuTorchRuntime, (self._path,)


@contextlib.contextmanager
def _silence_native_stderr() -> Iterator[None]:
    """Discard what C++ code writes to standard error within the block."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
