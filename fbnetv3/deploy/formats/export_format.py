"""The base class and the registry of export formats, and what all formats share: tracing and errors.

Each format has its own file; users can register more.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
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
FLOAT32 = "float32"
BFLOAT16 = "bfloat16"
FLOAT16 = "float16"
INT8 = "int8"
PRECISIONS = (FLOAT32, BFLOAT16, FLOAT16, INT8)
"""Number types that a format may compute or store a network in."""


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
        precisions: the `PRECISIONS` it offers, float32 first; `reduce_precision` makes all others.
        supports_reduce_range: whether int8 weights can have 7 bits.
        selects_float_layers: whether it has `quantize_layers`, for int8.
        float_share: share of the weights that layers in float have by default, with `quantize_layers`.
    """

    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    runtime_package: ClassVar[str] = "torch"
    supports_any_batch: ClassVar[bool] = True
    supports_any_size: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = (FLOAT32,)
    supports_reduce_range: ClassVar[bool] = False
    selects_float_layers: ClassVar[bool] = False
    float_share: ClassVar[float] = 0.01

    @property
    def file_name(self) -> str:
        """Name of the model file in an exported folder; of several files, the one that `open` takes."""
        return f"model{self.suffix}"

    def why_not_run_here(self) -> str:
        """Return why this operating system cannot run the format, so that exports stay unverified; empty if it can."""
        return ""

    def model_bytes(self, path: Path) -> int:
        """Return the size of the model: of the file `path`, and of the files that belong to it."""
        return path.stat().st_size

    def import_packages(self) -> None:
        """Import the format's packages."""
        for package in self.packages:
            with require_packages(package):
                import_module(package)

    def package_versions(self) -> dict[str, str]:
        """Return the versions of the format's packages, for the manifest."""
        versions = {}
        for package in self.packages:
            # onnxruntime may be installed as onnxruntime-gpu
            with contextlib.suppress(PackageNotFoundError):
                versions[package] = version(package)
        return versions

    def prepare(self, model: nn.Module) -> nn.Module:
        """Copy a network for export: fold BatchNorm and replace what the format cannot represent."""
        return prepare_for_export(model)

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the model file; raise an ExportError if the format cannot represent the program."""

    def write_from_onnx(self, source: Path, path: Path) -> None:
        """Write the model file from an ONNX file, as detectors are exported; `DETECTOR_FORMATS` have this method."""
        raise NotImplementedError

    @abstractmethod
    def open(self, path: Path, precision: str = FLOAT32) -> Runtime:
        """Load the model file, which was exported in `precision`; raise an ExportError if it cannot be read."""

    def runtimes(self, precision: str = FLOAT32) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return functions like `open` of all runtimes that run a file exported in `precision`, by name.

        That of `open` comes first, as `runtime_package`.
        """
        return {self.runtime_package: self.open}

    def device_runtimes(self) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return functions that open the file on a device, for those `runtimes` that compute on more than the CPU.

        The device is "cuda", "cuda:1" or another name, or "auto" for a GPU if there is one.
        """
        return {}

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Replace the float32 model file with one of another precision.

        Args:
            program: the network, as it was passed to `write`.
            path: the file that `write` has written.
            precision: one of `precisions`, except float32.
            batches: for int8, images to calibrate on, float32 (N, channels, H, W); otherwise empty.
            reduce_range: whether int8 weights have 7 bits; see `PrecisionSettings`.
        """
        raise NotImplementedError

    def quantize_layers(
        self,
        program: ExportedProgram,
        path: Path,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
        *,
        float_layers: Collection[str],
        ranges: Mapping[str, Sequence[float]],
    ) -> None:
        """Replace the float32 model file with an int8 one whose float layers are given.

        Args:
            program: the network, as it was passed to `write`.
            path: the file that `write` has written.
            batches: images to calibrate on, float32 (N, channels, H, W).
            reduce_range: whether weights have 7 bits; see `PrecisionSettings`.
            float_layers: names of the layers that stay float.
            ranges: for all other layers, lowest and highest value of the input and of the output, from
                quantization-aware training; if empty, they are measured on `batches`.
        """
        raise NotImplementedError

    def add_files(self, folder: Path) -> None:
        """Write what else belongs into an exported folder, such as a page that runs the network.

        Called last: the folder has the verified model file, the preprocessing and the class names. The manifest lists
        all files.
        """
        return


# Subclasses of `ExportFormat` by the name that `tools/export_net.py --format` takes
FORMATS = Registry("export format")
FORMATS.add("onnx", "fbnetv3.deploy.formats.onnx_format:OnnxFormat", __file__)
FORMATS.add("executorch", "fbnetv3.deploy.formats.executorch_format:ExecuTorchFormat", __file__)
FORMATS.add("aoti", "fbnetv3.deploy.formats.libtorch.aoti_format:AOTIFormat", __file__)
FORMATS.add("coreml", "fbnetv3.deploy.formats.converters.coreml_format:CoreMLFormat", __file__)
FORMATS.add("litert", "fbnetv3.deploy.formats.converters.litert_format:LiteRTFormat", __file__)
FORMATS.add("ncnn", "fbnetv3.deploy.formats.converters.ncnn_format:NCNNFormat", __file__)
FORMATS.add("torchscript", "fbnetv3.deploy.formats.libtorch.torchscript_format:TorchScriptFormat", __file__)
FORMATS.add("openvino", "fbnetv3.deploy.formats.openvino_format:OpenVinoFormat", __file__)
FORMATS.add("torch-export", "fbnetv3.deploy.formats.torch_export_format:TorchExportFormat", __file__)
FORMATS.add("web", "fbnetv3.deploy.formats.web_format:WebFormat", __file__)
FORMATS.add("triton", "fbnetv3.deploy.formats.triton_format:TritonFormat", __file__)


def get_format(name: str) -> ExportFormat:
    """Return the export format registered under `name`."""
    return FORMATS.get(name)()


def formats_supporting(option: str) -> list[str]:
    """Return the names of the formats that support "any_size" or "reduce_range", or that offer a precision."""
    formats = {name: get_format(name) for name in FORMATS.names()}
    if option in PRECISIONS:
        return [name for name, export_format in formats.items() if option in export_format.precisions]
    return [name for name, export_format in formats.items() if getattr(export_format, f"supports_{option}")]


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
