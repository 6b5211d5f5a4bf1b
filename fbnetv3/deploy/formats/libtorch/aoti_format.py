"""Packages of AOTInductor: a network as native code, for C++ programs that link LibTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, ExportFormat, as_export_error
from fbnetv3.deploy.formats.torch_export_format import ModuleRuntime
from fbnetv3.errors import MissingPackageError, UsageError

_SHAPE = "input_shape"  # entry of the package's metadata: JSON list, null for any size


class AOTIFormat(ExportFormat):
    """`model.pt2`, for `torch::inductor::AOTIModelPackageLoader` in C++ and `aoti_load_package` in Python.

    The code is compiled for the processor and the version of torch that write it.
    """

    suffix = ".pt2"

    def import_packages(self) -> None:
        """Check that there is a C++ compiler."""
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise MissingPackageError(
                "AOTInductor needs a C++ compiler, and there is none: install one, on Debian with apt-get install g++, "
                "or set CXX to its path"
            ) from None

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Compile the network and write the package."""
        (name,) = program.graph_signature.user_inputs
        (value,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
        shape = [size if isinstance(size, int) else None for size in value.shape]
        options = {
            # Otherwise the number of threads of this machine is compiled in
            "cpp.dynamic_threads": True,
            "aot_inductor.metadata": {_SHAPE: json.dumps(shape)},
        }
        with as_export_error("AOTInductor cannot compile this network"), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )

    def open(self, path: Path, precision: str = FLOAT32) -> AOTIRuntime:
        """Load the package, which runs its native code."""
        return AOTIRuntime(path)


class AOTIRuntime(ModuleRuntime):
    """Native code of AOTInductor for the CPU, with as many threads as torch uses; it is loaded again after pickling."""

    def __init__(self, path: Path) -> None:
        self._path = path
        name = f"torch {torch.__version__} AOTInductor"
        with as_export_error(f"{path}: {name} cannot read it; export it again"):
            model = torch._inductor.aoti_load_package(str(path))
            self._shape = json.loads(model.loader.get_metadata()[_SHAPE])
        super().__init__(cast("nn.Module", model), torch.device("cpu"))
        self.name = name

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        # The native code does not check: it would return wrong logits
        pairs = zip(self._shape, batch.shape, strict=True)
        if any(size not in (None, batch_size) for size, batch_size in pairs):
            raise UsageError(
                f"images have the shape {batch.shape}, but the network takes {tuple(self._shape)}"
            )
        return super().run(batch)

    def __reduce__(self) -> tuple[Any, ...]:
        return AOTIRuntime, (self._path,)
