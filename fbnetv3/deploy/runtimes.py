"""What runs an exported network: each takes a batch as an array and gives logits as an array."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.formats import INPUT, needed, silent
from fbnetv3.errors import ExportError, UsageError


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
    """

    def __init__(self, model: nn.Module) -> None:
        self.name = f"torch {torch.__version__}"
        self._model = model

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        with torch.no_grad():
            return self._model(torch.from_numpy(batch)).numpy()


class OnnxRuntime:
    """An ONNX file, by ONNX Runtime on the CPU, with as many threads as torch uses.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ExportError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with needed("onnxruntime"):
            import onnxruntime
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class but this
            raise _unreadable(path, self.name, error) from error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, channels, H, W) to logits, float32 (N, classes)."""
        return self.outputs(INPUT, batch)[0]

    def outputs(self, name: str, value: np.ndarray) -> list[np.ndarray]:
        """All outputs for the one input, which is called so."""
        return self._session.run(None, {name: value})


class ExecuTorchRuntime:
    """An ExecuTorch file, by its runtime for Python; one image at a time.

    Raises:
        MissingPackageError: executorch is not installed.
        ExportError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with needed("executorch"), silent():
            from executorch.runtime import Runtime as Library
        self.name = f"executorch {version('executorch')}"
        try:
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


_RUNTIMES = {"onnx": OnnxRuntime, "executorch": ExecuTorchRuntime, "torch-export": _torch_export}


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


def _unreadable(path: Path, name: str, error: Exception) -> ExportError:
    return ExportError(f"{path}: {name} cannot read it ({' '.join(str(error).split())[:200]}): export it again")
