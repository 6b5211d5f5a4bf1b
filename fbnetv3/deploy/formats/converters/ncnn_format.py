"""NCNN files for phones and boards. The packages pnnx, which converts, and ncnn, which runs, are imported when used."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import (
    FLOAT16,
    FLOAT32,
    INPUT_NAME,
    OUTPUT_NAME,
    ExportFormat,
    as_export_error,
    require_packages,
)
from fbnetv3.deploy.formats.libtorch.torchscript_format import TorchScriptFormat
from fbnetv3.deploy.process_local import ProcessLocal
from fbnetv3.errors import ExportError
from fbnetv3.utils.logging_setup import quiet_standard_error

_WEIGHTS_SUFFIX = ".bin"
# Names that pnnx gives the input and the output
_PNNX_NAMES = {"in0": INPUT_NAME, "out0": OUTPUT_NAME}
# Options of NCNN that compute or store feature maps in 16 bits; which of them have an effect depends on the processor
_FLOAT16_OPTIONS = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


class NCNNFormat(ExportFormat):
    """`model.param`, the graph, and `model.bin`, the weights: takes one image at a time."""

    suffix = ".param"
    packages = ("ncnn", "pnnx")
    runtime_package = "ncnn"
    supports_any_batch = False
    precisions = (FLOAT32, FLOAT16)

    def model_bytes(self, path: Path) -> int:
        """Return the size of both files."""
        return path.stat().st_size + path.with_suffix(_WEIGHTS_SUFFIX).stat().st_size

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write both files, with float32 weights."""
        _convert(program, path, is_float16=False)

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Write both files again, with float16 weights."""
        _convert(program, path, is_float16=True)

    def open(self, path: Path, precision: str = FLOAT32) -> NCNNRuntime:
        """Load both files in NCNN."""
        return NCNNRuntime(path, is_float16=precision == FLOAT16)


def _convert(program: ExportedProgram, path: Path, is_float16: bool) -> None:
    with require_packages("pnnx"):
        import pnnx
    (example,), _ = program.example_inputs
    shape = ",".join(map(str, example.shape))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        TorchScriptFormat().write(program, folder / "traced.pt")
        # Call the program, because pnnx's Python function ignores its failures and prints. It names what it writes
        # after its input, in its folder
        options = [f"inputshape=[{shape}]f32", f"fp16={int(is_float16)}"]
        done = subprocess.run(
            [pnnx.EXEC_PATH, "traced.pt", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        graph = folder / "traced.ncnn.param"
        if done.returncode or not graph.is_file():
            last_lines = " ".join(done.stderr.splitlines()[-2:])
            raise ExportError(
                f"pnnx cannot export this network: {last_lines or f'exit status {done.returncode}'}"
            )
        text = graph.read_text()
        for pnnx_name, name in _PNNX_NAMES.items():
            text = re.sub(rf"\b{pnnx_name}\b", name, text)
        path.write_text(text)
        path.with_suffix(_WEIGHTS_SUFFIX).write_bytes(graph.with_suffix(_WEIGHTS_SUFFIX).read_bytes())


class NCNNRuntime:
    """NCNN on the CPU, with as many threads as torch uses.

    It can be pickled, and used after a fork: each process opens the files for itself.
    """

    def __init__(self, path: Path, is_float16: bool = False) -> None:
        with require_packages("ncnn"):
            import ncnn
        self.name = f"ncnn {ncnn.__version__}"
        self._net = ProcessLocal(partial(_open_net, path, self.name, is_float16, os.getpid()))
        self._net.get()  # so that a file that cannot be read is an error here

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), one after another; return logits, float32 (N, classes)."""
        return np.stack([self._run_image(image) for image in np.ascontiguousarray(batch)])

    def _run_image(self, image: np.ndarray) -> np.ndarray:
        import ncnn

        extractor = self._net.get().create_extractor()
        status = extractor.input(INPUT_NAME, ncnn.Mat(image))
        if status == 0:
            status, logits = extractor.extract(OUTPUT_NAME)
        if status:
            raise ExportError(f"{self.name} cannot run the network: status {status}")
        return np.array(logits, np.float32).ravel()


def _open_net(path: Path, runtime_name: str, is_float16: bool, opener: int) -> Any:
    """Load both files; `opener` is the id of the process that opened them first."""
    import ncnn

    net = ncnn.Net()
    # After a fork, OpenMP would wait forever for the threads of the parent
    net.opt.num_threads = torch.get_num_threads() if os.getpid() == opener else 1
    net.opt.use_bf16_storage = False
    for option in _FLOAT16_OPTIONS:
        setattr(net.opt, option, is_float16)
    # NCNN reports problems by numbers, and prints them
    for load, part in ((net.load_param, path), (net.load_model, path.with_suffix(_WEIGHTS_SUFFIX))):
        problem = f"{part}: {runtime_name} cannot read it; export it again"
        with as_export_error(problem), quiet_standard_error():
            status = load(str(part))
        if status:
            raise ExportError(problem)
    return net
