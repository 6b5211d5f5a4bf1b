"""torch.export archives, and torch itself as a runtime."""

from __future__ import annotations

import copy
import io
from pathlib import Path

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

    def open(self, path: Path, precision: str = FLOAT32) -> TorchRuntime:
        """Load the archive."""
        with as_export_error(f"{path}: torch {torch.__version__} cannot read it; export it again"):
            return TorchRuntime(torch.export.load(path).module())


class TorchRuntime:
    """torch on the CPU, for a network in eval mode.

    With `optimize`, it runs a faster copy with the same outputs up to rounding; see `fuse_blocks`.
    """

    def __init__(self, model: nn.Module, *, optimize: bool = False) -> None:
        self.name = f"torch {torch.__version__}"
        self._memory_format = torch.channels_last if optimize else torch.contiguous_format
        if optimize:
            model = fuse_blocks(copy.deepcopy(model)).to(memory_format=self._memory_format)  # type: ignore[call-overload]
        self._model = model

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        with torch.inference_mode():
            images = torch.from_numpy(batch).contiguous(memory_format=self._memory_format)
            return self._model(images).numpy()
