"""torch.export archives, and torch itself as a runtime."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.formats.export_errors import as_export_errors, unreadable_model
from fbnetv3.deploy.formats.export_format import ExportFormat
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks


class TorchExportFormat(ExportFormat):
    """`model.pt2`, for `torch.export.load`."""

    suffix = ".pt2"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the archive."""
        archive = io.BytesIO()  # torch's own file writer aborts the process when the disk is full
        with as_export_errors("torch.export"):
            torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())

    def open(self, path: Path) -> TorchRuntime:
        """Load the archive."""
        try:
            return TorchRuntime(torch.export.load(path).module())
        except Exception as error:
            raise unreadable_model(path, f"torch {torch.__version__}", error) from error


class TorchRuntime:
    """torch on the CPU.

    Args:
        model: the network, in evaluation mode.
        optimize: run a faster copy with the same outputs up to rounding; see `fuse_blocks`.
    """

    def __init__(self, model: nn.Module, *, optimize: bool = False) -> None:
        self.name = f"torch {torch.__version__}"
        self._layout = torch.channels_last if optimize else torch.contiguous_format
        if optimize:
            model = fuse_blocks(copy.deepcopy(model)).to(memory_format=self._layout)  # type: ignore[call-overload]
        self._model = model

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        with torch.inference_mode():
            images = torch.from_numpy(batch).contiguous(memory_format=self._layout)
            return self._model(images).numpy()
