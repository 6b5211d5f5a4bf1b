"""TorchScript files, for C++ programs that link LibTorch."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, ExportFormat, Runtime, as_export_error
from fbnetv3.deploy.formats.torch_export_format import ModuleRuntime
from fbnetv3.modeling.torch_device import CPU, find_device


class TorchScriptFormat(ExportFormat):
    """`model.pt`, for `torch::jit::load` in C++ and `torch.jit.load` in Python."""

    suffix = ".pt"

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Trace the program, which has no branches, so that a trace is complete."""
        # torch's own file writer aborts the process when the disk is full
        archive = io.BytesIO()
        with as_export_error("TorchScript cannot export this network"), torch.no_grad():
            example, _ = program.example_inputs
            torch.jit.save(torch.jit.trace(program.module(), example, check_trace=False), archive)
        path.write_bytes(archive.getbuffer())

    def open(self, path: Path, precision: str = FLOAT32) -> TorchScriptRuntime:
        """Load the file in torch."""
        return TorchScriptRuntime(path)

    def device_runtimes(self) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return torch."""
        return {self.runtime_package: TorchScriptRuntime}


class TorchScriptRuntime(ModuleRuntime):
    """torch, for the TorchScript file at `path`, which is loaded again after pickling."""

    def __init__(self, path: Path, device: str = CPU) -> None:
        self._arguments = (path, device)
        torch_device = find_device(device)
        with as_export_error(f"{path}: torch {torch.__version__} cannot read it; export it again"):
            super().__init__(torch.jit.load(str(path), map_location=torch_device), torch_device)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchScriptRuntime, self._arguments
