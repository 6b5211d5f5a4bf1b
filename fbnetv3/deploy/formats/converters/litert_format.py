"""LiteRT files (TFLite) for phones. litert-torch converts, ai-edge-litert runs; both are imported when used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.converters.converter_output import quiet_converter
from fbnetv3.deploy.formats.export_format import (
    FLOAT16,
    FLOAT32,
    INPUT_NAME,
    INT8,
    OUTPUT_NAME,
    ExportFormat,
    as_export_error,
    require_packages,
)
from fbnetv3.deploy.process_local import ProcessLocal
from fbnetv3.utils.logging_setup import quiet_standard_error


class LiteRTFormat(ExportFormat):
    """`model.tflite`: takes one image of a fixed size, in the layout of torch, with the usual names."""

    suffix = ".tflite"
    packages = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    runtime_package = "ai_edge_litert"
    supports_any_batch = False
    supports_any_size = False
    precisions = (FLOAT32, FLOAT16, INT8)

    def import_packages(self) -> None:
        """Import the format's packages, some of which print messages."""
        with quiet_converter():
            super().import_packages()

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Convert the program and write the file."""
        with require_packages("litert_torch"):
            import litert_torch
        (example,), _ = program.example_inputs
        model = _NamedOutput(program.module())
        with as_export_error("LiteRT cannot represent this network"), quiet_converter():
            litert_torch.convert(model, sample_kwargs={INPUT_NAME: example}).export(str(path))

    def open(self, path: Path, precision: str = FLOAT32) -> LiteRTRuntime:
        """Load the file in LiteRT's interpreter."""
        return LiteRTRuntime(path)

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Replace the file with one of float16 weights, or quantize it with `quantize_litert`."""
        with require_packages("ai_edge_quantizer"):
            from fbnetv3.deploy.formats.converters.litert_quantization import (
                quantize_litert,
                store_litert_in_float16,
            )
        with as_export_error("AI Edge Quantizer cannot quantize this network"), quiet_converter():
            if precision == INT8:
                quantize_litert(path, batches)
            else:
                store_litert_in_float16(path)


class _NamedOutput(nn.Module):
    """A network whose input and output have names, which the file keeps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False  # exported programs reject .eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {OUTPUT_NAME: self.model(images)}


class LiteRTRuntime:
    """LiteRT's interpreter with XNNPACK's kernels, with as many threads as torch uses.

    It can be pickled, and used after a fork: each process opens the file for itself.
    """

    def __init__(self, path: Path) -> None:
        with require_packages("ai_edge_litert"):
            import ai_edge_litert  # noqa: F401
        self.name = f"ai-edge-litert {version('ai-edge-litert')}"
        self._model = ProcessLocal(partial(_open_signature, path, self.name))
        self._model.get()  # so that a file that cannot be read is an error here

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), one after another; return logits, float32 (N, classes)."""
        run = self._model.get()
        images = np.split(batch, len(batch))
        return np.concatenate([run(**{INPUT_NAME: image})[OUTPUT_NAME] for image in images])


def _open_signature(path: Path, runtime_name: str) -> Callable[..., dict[str, np.ndarray]]:
    """Return the network as a function with named arguments and results."""
    from ai_edge_litert.interpreter import Interpreter

    with as_export_error(f"{path}: {runtime_name} cannot read it; export it again"), quiet_standard_error():
        interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
        return interpreter.get_signature_runner()
