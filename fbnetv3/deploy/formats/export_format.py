"""The base class and the registry of export formats, and what all formats share: tracing and errors.

Each format has its own file; users can register more.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.errors import ExportError, MissingPackageError, UserError
from fbnetv3.registry import Registry
from fbnetv3.utils.logging_setup import suppress_warnings
from fbnetv3.utils.text import one_line

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


class Runtime(Protocol):
    """An object that runs a classifier on arrays."""

    name: str  # the library and its version, for messages

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        ...


class ExportFormat(ABC):
    """A file format of exported networks.

    Subclass it, set what the format supports, and register the class with `@FORMATS.register(name="...")`.

    Attributes:
        suffix: suffix of the model file, such as ".onnx".
        packages: import names of the packages that write and run the format, in addition to torch.
        runtime_package: import name of the package that runs the model file; latency tables record its version.
        supports_any_batch: whether one file takes batches of any size; if not, it takes one image at a time.
        supports_any_size: whether one file can take images of any height and width.
        supports_int8: whether `quantize` is implemented.
        supports_reduce_range: whether `quantize` can reduce weights to 7 bits.
    """

    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime_package: ClassVar[str] = "torch"
    supports_any_batch: ClassVar[bool] = True
    supports_any_size: ClassVar[bool] = True
    supports_int8: ClassVar[bool] = False
    supports_reduce_range: ClassVar[bool] = False

    @property
    def file_name(self) -> str:
        """Name of the model file in an exported folder."""
        return f"model{self.suffix}"

    def import_packages(self) -> None:
        """Import the format's packages."""
        for package in self.packages:
            with require_packages(package):
                import_module(package)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Copy a network for export: fold BatchNorm and replace what the format cannot represent."""
        return prepare_for_export(model)

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the model file; raise an ExportError if the format cannot represent the program."""

    @abstractmethod
    def open(self, path: Path) -> Runtime:
        """Load the model file; raise an ExportError if it cannot be read."""

    def quantize(
        self, program: ExportedProgram, path: Path, batches: Iterable[np.ndarray], reduce_range: bool
    ) -> None:
        """Replace the model file with its int8 version.

        Args:
            program: the network, as it was passed to `write`.
            path: the file that `write` has written.
            batches: images to calibrate on, float32 (N, channels, H, W).
            reduce_range: whether to use 7-bit weights; see `Int8Settings`.
        """
        raise NotImplementedError


# Subclasses of `ExportFormat` by the name that `tools/export_net.py --format` takes
FORMATS = Registry("export format")
FORMATS.add("onnx", "fbnetv3.deploy.formats.onnx_format:OnnxFormat", __file__)
FORMATS.add("executorch", "fbnetv3.deploy.formats.executorch_format:ExecuTorchFormat", __file__)
FORMATS.add("torch-export", "fbnetv3.deploy.formats.torch_export_format:TorchExportFormat", __file__)


def get_format(name: str) -> ExportFormat:
    """Return the export format registered under `name`."""
    return FORMATS.get(name)()


def formats_supporting(option: str) -> list[str]:
    """Return the names of the formats that support "any_size", "int8" or another option of `ExportFormat`."""
    return [name for name in FORMATS.names() if getattr(get_format(name), f"supports_{option}")]


def export_program(model: nn.Module, example: Tensor, dynamic_axes: Sequence[int] = ()) -> ExportedProgram:
    """Trace a network in eval mode with an example of its only input, whose `dynamic_axes` may vary at run time."""
    dynamic_shapes = (dict.fromkeys(dynamic_axes, torch.export.Dim.DYNAMIC),)
    with as_export_error("torch.export cannot export this network"), torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=dynamic_shapes)


@contextlib.contextmanager
def require_packages(*packages: str) -> Iterator[None]:
    """Turn an ImportError within the block into an error that says what to install, and suppress warnings."""
    try:
        with suppress_warnings():
            yield
    except ImportError as error:
        names = " ".join(packages)
        raise MissingPackageError(
            f"{names} cannot be imported ({error}): run pip install {names}"
        ) from None


@contextlib.contextmanager
def as_export_error(problem: str) -> Iterator[None]:
    """Turn errors of exporters and runtimes, of almost any type, into an ExportError, and suppress their warnings."""
    try:
        with suppress_warnings():
            yield
    except (MemoryError, OSError, UserError):
        raise
    except Exception as error:
        raise ExportError(f"{problem}: {one_line(error) or type(error).__name__}") from error
