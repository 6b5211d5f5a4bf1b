"""The interface of export formats and their registry. Each format lives in its own file; users can register more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.formats.export_errors import require_packages
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.registry import Registry

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


class Runtime(Protocol):
    """Something that runs a classifier on arrays.

    Attributes:
        name: the library and its version, for messages.
    """

    name: str

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        ...


class ExportFormat(ABC):
    """A file format of exported networks.

    Subclass it, set what the format supports, and register the class with `@FORMATS.register(name="...")`.
    """

    suffix: ClassVar[str]
    """Suffix of the model file, such as ".onnx"."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Import names of the packages, in addition to torch, that write and run the format."""
    runtime_package: ClassVar[str] = "torch"
    """Import name of the package that runs the model file; latency measurements record its version."""
    supports_any_batch: ClassVar[bool] = True
    """Whether one file takes batches of any size; if not, it takes one image at a time."""
    supports_any_size: ClassVar[bool] = True
    """Whether one file can take images of any height and width."""
    supports_int8: ClassVar[bool] = False
    """Whether `quantize` is implemented."""
    supports_reduce_range: ClassVar[bool] = False
    """Whether `quantize` can reduce weights to 7 bits."""

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
    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the model file.

        Raises:
            ExportError: the format cannot represent the program.
        """

    @abstractmethod
    def open(self, path: Path) -> Runtime:
        """Load the model file.

        Raises:
            ExportError: the file cannot be read.
        """

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Replace the model file with its int8 version.

        Args:
            program: the network, as it was passed to `write`.
            path: the file that `write` has written.
            batches: images to calibrate on, float32 (N, channels, H, W).
            reduce_range: use 7-bit weights, for x86 without VNNI, where sums of two 8-bit products may saturate.
        """
        raise NotImplementedError


def _shipped_formats() -> Iterator[tuple[str, str, str]]:
    for name, entry in {
        "onnx": "onnx_format:OnnxFormat",
        "executorch": "executorch_format:ExecuTorchFormat",
        "torch-export": "torch_export_format:TorchExportFormat",
    }.items():
        yield name, f"fbnetv3.deploy.formats.{entry}", __file__


FORMATS = Registry("export format", _shipped_formats)
"""Subclasses of `ExportFormat` by the name that `tools/export_net.py --format` takes."""


def get_format(name: str) -> ExportFormat:
    """Return the export format registered under `name`.

    Raises:
        UnknownNameError: no such format; the message suggests similar names.
    """
    return FORMATS.get(name)()
