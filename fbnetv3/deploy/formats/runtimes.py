"""What runs an exported network: each takes a batch as an array and gives logits as an array."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.formats.export_formats import INPUT, needed, silent
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks


class Runtime(Protocol):
    """Runs a network.

    Attributes:
        name: what to call it in a message, with its version.
    """

    name: str

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        ...


class TorchRuntime:
    """A network in this process, by torch.

    Args:
        model: in evaluation mode, on the CPU.
        optimize: run a copy that is faster and gives the same up to rounding, see `fuse_blocks`.
    """

    def __init__(self, model: nn.Module, *, optimize: bool = False) -> None:
        self.name = f"torch {torch.__version__}"
        self._layout = torch.channels_last if optimize else torch.contiguous_format
        self._model = fuse_blocks(copy.deepcopy(model)).to(memory_format=self._layout) if optimize else model

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        with torch.inference_mode():
            return self._model(torch.from_numpy(batch).contiguous(memory_format=self._layout)).numpy()


class OnnxRuntime:
    """An ONNX file, by ONNX Runtime on the CPU, with as many threads as torch uses.

    The threads share the work on each layer of an image. A batch is divided among them instead, each taking some of the
    images through all layers, where there is an image for each: they never wait for each other then.

    Args:
        model: the file's path, or what stands in it.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ExportError: the file cannot be read.
    """

    def __init__(self, model: Path | bytes) -> None:
        with needed("onnxruntime"):
            import onnxruntime
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._threads = torch.get_num_threads()
        self._model = model if isinstance(model, bytes) else str(model)
        self._session = self._opened(self._threads)
        self._any_batch = not isinstance(self._session.get_inputs()[0].shape[0], int)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        if self._threads == 1 or len(batch) < self._threads or not self._any_batch:
            return self.outputs(INPUT, batch)[0]
        session, pool = self._divided
        parts = np.array_split(batch, self._threads)
        return np.concatenate(list(pool.map(lambda part: session.run(None, {INPUT: part})[0], parts)))

    def outputs(self, name: str, value: np.ndarray) -> list[np.ndarray]:
        """All outputs for the one input, which is called so."""
        return self._session.run(None, {name: value})

    @cached_property
    def _divided(self) -> tuple[Any, ThreadPoolExecutor]:
        """A session that takes the calling thread alone, and threads to call it."""
        return self._opened(1), ThreadPoolExecutor(self._threads, "onnxruntime")

    def _opened(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class but this
            where = "the graph" if isinstance(self._model, bytes) else self._model
            raise _unreadable(where, self.name, error) from error


class ExecuTorchRuntime:
    """An ExecuTorch file, by its runtime for Python, with as many threads as torch uses; one image at a time.

    Raises:
        MissingPackageError: executorch is not installed.
        ExportError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with needed("executorch"), silent():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime as Library
        self.name = f"executorch {version('executorch')}"
        try:
            with _without_native_messages():
                portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
            self._program = Library.get().load_program(path)
            self._method = self._program.load_method("forward")
        except Exception as error:
            raise _unreadable(path, self.name, error) from error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        images = torch.from_numpy(batch).split(1)
        return np.concatenate([self._method.execute([image])[0].numpy().copy() for image in images])


def _torch_export(path: Path) -> TorchRuntime:
    try:
        return TorchRuntime(torch.export.load(path).module())
    except Exception as error:
        raise _unreadable(path, f"torch {torch.__version__}", error) from error


_RUNTIMES: dict[str, Callable[[Path], Runtime]] = {
    "onnx": OnnxRuntime,
    "executorch": ExecuTorchRuntime,
    "torch-export": _torch_export,
}


def open_runtime(format: str, path: Path) -> Runtime:
    """The runtime for a model's file.

    Raises:
        UsageError: no such format.
        MissingPackageError: its library is not installed; the text says what to install.
        ExportError: the file cannot be read.
    """
    if format not in _RUNTIMES:
        raise UsageError(f"format '{format}' is none of {', '.join(_RUNTIMES)}")
    return _RUNTIMES[format](path)


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Nothing that C++ code writes to standard error is seen."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _unreadable(path: Path | str, name: str, error: Exception) -> ExportError:
    return ExportError(f"{path}: {name} cannot read it ({' '.join(str(error).split())[:200]}): export it again")
