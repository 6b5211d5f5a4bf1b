"""Core ML packages for Apple's devices, which only macOS can run. The package coremltools is imported when used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
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
from fbnetv3.errors import ExportError

# The graph within a package
_GRAPH = Path("Data", "com.apple.CoreML", "model.mlmodel")


class CoreMLFormat(ExportFormat):
    """`model.mlpackage`, an ML Program for iOS 15, macOS 12 or newer: takes one image of a fixed size.

    Its metadata has the preprocessing (`preprocessing`) and the class names (`classes`) as JSON.
    """

    suffix = ".mlpackage"
    packages = ("coremltools",)
    runtime_package = "coremltools"
    supports_any_batch = False
    supports_any_size = False
    precisions = (FLOAT32, FLOAT16, INT8)

    def why_not_run_here(self) -> str:
        """Return that Core ML is part of macOS, elsewhere."""
        return "" if sys.platform == "darwin" else "Core ML runs on macOS"

    def model_bytes(self, path: Path) -> int:
        """Return the size of all files in the package."""
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write a package that computes in float32."""
        _convert(program, path, FLOAT32)

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Replace the package with one that computes in float16, or stores its weights in int8."""
        if precision == INT8:
            _store_weights_in_int8(path)
        else:
            _convert(program, path, precision)

    def open(self, path: Path, precision: str = FLOAT32) -> CoreMLRuntime:
        """Load the package in Core ML."""
        if reason := self.why_not_run_here():
            raise ExportError(f"{path}: cannot run here: {reason}")
        self.import_packages()
        return CoreMLRuntime(path)

    def add_files(self, folder: Path) -> None:
        """Write preprocessing and class names into the package, which apps get without the rest of the folder."""
        from coremltools.proto import Model_pb2

        path = folder / self.file_name / _GRAPH
        model = Model_pb2.Model()
        model.ParseFromString(path.read_bytes())
        description = model.description
        for name in ("preprocessing", "classes"):
            content = json.loads((folder / f"{name}.json").read_text())
            description.metadata.userDefined[name] = json.dumps(content)
        description.metadata.shortDescription = "Image classifier"
        description.input[0].shortDescription = "images, preprocessed as the metadata describes"
        description.output[0].shortDescription = "a logit for each of the classes in the metadata"
        path.write_bytes(model.SerializeToString())


def _convert(program: ExportedProgram, path: Path, precision: str) -> None:
    with require_packages("coremltools"), quiet_converter():
        import coremltools
    (example,), _ = program.example_inputs
    with as_export_error("Core ML cannot represent this network"), quiet_converter():
        model = coremltools.convert(
            program.run_decompositions({}),
            inputs=[coremltools.TensorType(name=INPUT_NAME, shape=tuple(example.shape))],
            outputs=[coremltools.TensorType(name=OUTPUT_NAME, dtype=np.float32)],
            compute_precision=coremltools.precision(precision),
            minimum_deployment_target=coremltools.target.iOS15,
            skip_model_load=True,
        )
        _save(model, path)


def _store_weights_in_int8(path: Path) -> None:
    """Replace a package with one of int8 weights, a scale for each output channel; it computes in floating point."""
    with require_packages("coremltools"), quiet_converter():
        import coremltools
        from coremltools.optimize import coreml as optimize
    with as_export_error("coremltools cannot quantize this network"), quiet_converter():
        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        symmetric = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
        config = optimize.OptimizationConfig(global_config=symmetric)
        _save(optimize.linear_quantize_weights(model, config), path)


def _save(model: Any, path: Path) -> None:
    model.save(str(path))
    # Names of torch's operators, for debugging
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


class CoreMLRuntime:
    """Core ML on the CPU of a Mac, which chooses the number of threads. Each process opens the package for itself."""

    def __init__(self, path: Path) -> None:
        self.name = f"Core ML, coremltools {version('coremltools')}"
        self._model = ProcessLocal(partial(_open_package, path, self.name))
        self._model.get()  # so that a package that cannot be read is an error here

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), one after another; return logits, float32 (N, classes)."""
        model = self._model.get()
        images = np.split(batch, len(batch))
        return np.concatenate([model.predict({INPUT_NAME: image})[OUTPUT_NAME] for image in images])


def _open_package(path: Path, runtime_name: str) -> Any:
    import coremltools

    with as_export_error(f"{path}: {runtime_name} cannot read it; export it again"), quiet_converter():
        return coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
