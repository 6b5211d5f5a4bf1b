"""TorchScript files, for C++ programs that link LibTorch."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, ExportFormat, as_export_error
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime


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

    def open(self, path: Path, precision: str = FLOAT32) -> TorchRuntime:
        """Load the file in torch."""
        with as_export_error(f"{path}: torch {torch.__version__} cannot read it; export it again"):
            return TorchRuntime(torch.jit.load(str(path)))
