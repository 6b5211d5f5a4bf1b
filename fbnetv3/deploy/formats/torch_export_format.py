"""torch.export archives, and torch itself as a runtime."""

from __future__ import annotations

import copy
import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, ExportFormat, as_export_error
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks


class TorchExportFormat(ExportFormat):
    """`model.pt2`, for `torch.export.load`."""

    suffix = ".pt2"

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the archive."""
        # torch's own file writer aborts the process when the disk is full
        archive = io.BytesIO()
        with as_export_error("torch.export cannot export this network"):
            torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())

    def open(self, path: Path, precision: str = FLOAT32) -> TorchExportRuntime:
        """Load the archive."""
        return TorchExportRuntime(path)


class TorchRuntime:
    """torch on the CPU, for a network in eval mode.

    With `optimize`, it runs a faster copy with the same outputs up to rounding; see `fuse_blocks`. Pickling stores the
    network as it was passed. After a fork, the child uses one thread, because the threads of the parent are not copied.
    """

    def __init__(self, model: nn.Module, *, optimize: bool = False) -> None:
        self.name = f"torch {torch.__version__}"
        self._memory_format = torch.channels_last if optimize else torch.contiguous_format
        self._arguments = (model, optimize)
        if optimize:
            model = fuse_blocks(copy.deepcopy(model)).to(memory_format=self._memory_format)  # type: ignore[call-overload]
        self._model = model
        self._process_id = os.getpid()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        if os.getpid() != self._process_id:
            torch.set_num_threads(1)  # OpenMP would wait forever for the threads of the parent
            self._process_id = os.getpid()
        with torch.inference_mode():
            images = torch.from_numpy(batch).contiguous(memory_format=self._memory_format)
            return self._model(images).numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        model, optimize = self._arguments
        return partial(TorchRuntime, optimize=optimize), (model,)


class TorchExportRuntime(TorchRuntime):
    """torch on the CPU, for the archive at `path`, which is loaded again after pickling."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with as_export_error(f"{path}: torch {torch.__version__} cannot read it; export it again"):
            super().__init__(torch.export.load(path).module())

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchExportRuntime, (self._path,)
