"""torch.export archives, and torch itself as a runtime."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, ExportFormat, Runtime, as_export_error
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks
from fbnetv3.modeling.torch_device import CPU, copy_to_device, find_device


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

    def device_runtimes(self) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return torch."""
        return {self.runtime_package: TorchExportRuntime}


class ModuleRuntime:
    """torch, for a module in eval mode on `device`. Arrays come from the CPU, and go back to it.

    After a fork, the child uses one thread, because the threads of the parent are not copied.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.name = f"torch {torch.__version__}{'' if device.type == CPU else f' on {device}'}"
        self._model = model
        self._device = device
        self._memory_format = memory_format
        self._process_id = os.getpid()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        if os.getpid() != self._process_id:
            torch.set_num_threads(1)  # OpenMP would wait forever for the threads of the parent
            self._process_id = os.getpid()
        with torch.inference_mode():
            images = copy_to_device(torch.from_numpy(batch), self._device)
            logits = self._model(images.contiguous(memory_format=self._memory_format))
            return logits.to(CPU).numpy()


class TorchRuntime(ModuleRuntime):
    """torch, for a network in eval mode on the CPU; with another `device`, it runs a copy there.

    With `optimize`, it runs a faster copy with the same outputs up to rounding; see `fuse_blocks`. Pickling stores the
    network as it was passed.

    Args:
        model: the network.
        optimize: whether to run a faster copy.
        device: "cpu", "cuda", "cuda:1" or another device of torch, or "auto" for a GPU if there is one.

    Raises:
        UsageError: this machine has no such device.
    """

    def __init__(self, model: nn.Module, *, optimize: bool = False, device: str = CPU) -> None:
        self._arguments = (model, optimize, device)
        torch_device = find_device(device)
        memory_format = torch.channels_last if optimize else torch.contiguous_format
        if optimize or torch_device.type != CPU:
            model = copy.deepcopy(model).to(torch_device)
        if optimize:
            model = fuse_blocks(model).to(memory_format=memory_format)  # type: ignore[call-overload]
        super().__init__(model, torch_device, memory_format)

    def __reduce__(self) -> tuple[Any, ...]:
        model, optimize, device = self._arguments
        return partial(TorchRuntime, optimize=optimize, device=device), (model,)


class TorchExportRuntime(ModuleRuntime):
    """torch, for the archive at `path`, which is loaded again after pickling."""

    def __init__(self, path: Path, device: str = CPU) -> None:
        self._arguments = (path, device)
        torch_device = find_device(device)
        with as_export_error(f"{path}: torch {torch.__version__} cannot read it; export it again"):
            program = torch.export.load(path)
            if torch_device.type != CPU:
                from torch.export.passes import move_to_device_pass  # torch 2.6

                program = move_to_device_pass(program, torch_device)
            super().__init__(program.module(), torch_device)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchExportRuntime, self._arguments
