"""OpenVINO's intermediate representation, and OpenVINO as a runtime on the CPU. Packages are imported when used."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import (
    BFLOAT16,
    FLOAT32,
    INPUT_NAME,
    INT8,
    ExportFormat,
    Runtime,
    as_export_error,
    require_packages,
)
from fbnetv3.deploy.formats.onnx_format import write_onnx
from fbnetv3.deploy.process_local import ProcessLocal
from fbnetv3.errors import ExportError
from fbnetv3.utils.text import one_line

FLOAT32_ARITHMETIC = "openvino-float32"
"""Runtime that computes in float32, with weights in bfloat16."""

# Type in which OpenVINO computes. It is always set: on CPUs with bfloat16 instructions, the default is bfloat16
_COMPUTE_TYPES = {FLOAT32: "f32", INT8: "f32", BFLOAT16: "bf16"}
_TYPE_NAMES = {"f32": "float32", "i64": "int64", "u8": "uint8"}


class OpenVinoFormat(ExportFormat):
    """`model.xml` with the graph and `model.bin` with the weights, converted from ONNX."""

    suffix = ".xml"
    packages = ("onnx", "onnxscript", "openvino")
    runtime_package = "openvino"
    precisions = (FLOAT32, BFLOAT16, INT8)
    supports_reduce_range = True

    def model_bytes(self, path: Path) -> int:
        """Return the size of graph and weights."""
        return path.stat().st_size + weights_file(path).stat().st_size

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the graph and the weights, both in float32."""
        with tempfile.TemporaryDirectory() as folder:
            onnx_path = Path(folder) / "model.onnx"
            write_onnx(program, onnx_path)
            self.write_from_onnx(onnx_path, path)

    def write_from_onnx(self, source: Path, path: Path) -> None:
        """Convert an ONNX file."""
        from openvino.passes import ConstantFolding, Manager

        graph = read_graph(source)
        # The weights of depthwise convolutions get one more axis
        manager = Manager()
        manager.register_pass(ConstantFolding())
        manager.run_passes(graph)
        save_graph(graph, path)

    def open(self, path: Path, precision: str = FLOAT32) -> OpenVinoRuntime:
        """Compile the network for this CPU."""
        return OpenVinoRuntime(path, precision)

    def runtimes(self, precision: str = FLOAT32) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return OpenVINO; for bfloat16 also with float32 arithmetic, which is faster on many processors."""
        own = super().runtimes(precision)
        return {**own, FLOAT32_ARITHMETIC: _open_in_float32} if precision == BFLOAT16 else own

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Round the weights to bfloat16, or quantize the network with `quantize_openvino`."""
        if precision == BFLOAT16:
            round_weights(path)
            return
        with require_packages("nncf"):
            from fbnetv3.deploy.formats.openvino_quantization import quantize_openvino
        quantize_openvino(path, batches, reduce_range)


def weights_file(path: Path) -> Path:
    """Return the file with the weights of the graph `path`."""
    return path.with_suffix(".bin")


def _open_in_float32(path: Path, precision: str) -> OpenVinoRuntime:
    return OpenVinoRuntime(path, FLOAT32)


def _create_core() -> Any:
    with require_packages("openvino"):
        import openvino
    core = openvino.Core()
    # Otherwise weights are mapped into memory, and change when their file is replaced
    core.set_property({"ENABLE_MMAP": False})
    return core


# A single one, which lives as long as the process. The CPU plugin of each core sets a stack for signal handlers, and
# restores the former when it is destroyed. Of two, the first to go frees the stack that the second restores: the next
# signal that Python handles, such as SIGTERM, is a segmentation fault (OpenVINO 2026.4)
_core: ProcessLocal[Any] = ProcessLocal(_create_core)


def read_graph(path: Path) -> Any:
    """Read a graph (.xml or .onnx) as an `openvino.Model`, which no longer depends on the file."""
    core = _core.get()
    with as_export_error(f"{path}: {runtime_name()} cannot read it; export it again"):
        return core.read_model(str(path))


def save_graph(graph: Any, path: Path) -> None:
    """Write an `openvino.Model` to `path` (.xml) and its weights file, with weights of the type that they have."""
    import openvino

    with as_export_error("OpenVINO cannot write this network"):
        openvino.save_model(graph, str(path), compress_to_fp16=False)


def round_weights(path: Path) -> None:
    """Store the weights of all layers in bfloat16, which halves the file; biases stay float32."""
    import openvino
    from openvino import opset13

    graph = read_graph(path)
    for layer in weighted_layers(graph):
        constant = layer.input_value(1).get_node()
        # torch rounds to the nearest number; `opset13.constant` would not
        weights = torch.from_numpy(constant.get_data().copy()).bfloat16()
        tensor = openvino.Tensor(openvino.Type.bf16, list(weights.shape))
        tensor.data.view(np.int16)[...] = weights.view(torch.int16).numpy()
        rounded = opset13.constant(tensor, shared_memory=False)
        widened = opset13.convert(rounded, openvino.Type.f32)
        layer.input(1).replace_source_output(widened.output(0))
    save_graph(graph, path)


def weighted_layers(graph: Any) -> list[Any]:
    """Return the convolutions and matrix products with constant weights, in the order of execution."""
    types = ("Convolution", "GroupConvolution", "MatMul")
    layers = [op for op in graph.get_ordered_ops() if op.get_type_name() in types]
    return [layer for layer in layers if layer.input_value(1).get_node().get_type_name() == "Constant"]


def runtime_name() -> str:
    """Return "openvino" and its version without the build number."""
    with require_packages("openvino"):
        import openvino
    return f"openvino {openvino.__version__.split('-')[0]}"


class OpenVinoRuntime:
    """OpenVINO on the CPU, with as many threads as torch uses; takes a graph (.xml) or an ONNX file.

    By default all threads share the work on each layer. A batch of at least as many images as threads is split
    instead: each thread takes some images through all layers, so that threads never wait for one another.

    It computes in bfloat16 only if `precision` is "bfloat16"; otherwise in float32, and in integers where the graph is
    quantized. It may be called by several threads. It can be pickled, and used after a fork: each process opens the
    file for itself.
    """

    def __init__(self, path: Path, precision: str = FLOAT32) -> None:
        self.name = runtime_name()
        self.precision = precision
        self._model = ProcessLocal(partial(_CompiledModel, path, precision))
        self._model.get()  # so that a file that cannot be read is an error here

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        try:
            logits = self._model.get().run(batch)
        except RuntimeError as error:
            raise ExportError(f"{self.name} cannot run this network: {one_line(error)}") from error
        # Without AVX-512, OpenVINO 2026.4 computes nothing in bfloat16, and rarely reports an error
        if len(logits) != len(batch):
            raise ExportError(
                f"{self.name} returned logits of {len(logits)} instead of {len(batch)} images: this processor cannot "
                f"compute in {self.precision}; use runtime {FLOAT32_ARITHMETIC!r} or a float32 export"
            )
        return logits

    def run_outputs(self, input_name: str, value: np.ndarray) -> list[np.ndarray]:
        """Return all outputs for the one input, which is called `input_name`."""
        return self._model.get().run_outputs(input_name, value)

    def describe_inputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each input, where None means any size."""
        return [_describe_value(value) for value in self._model.get().compiled.inputs]

    def describe_outputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each output, where None means any size."""
        return [_describe_value(value) for value in self._model.get().compiled.outputs]


class _CompiledModel:
    """A model in the memory of this process."""

    def __init__(self, path: Path, precision: str) -> None:
        self._graph = read_graph(path)
        self._arguments = (path, precision)
        self._num_threads = torch.get_num_threads()
        self.compiled = self._compile(num_streams=1)
        self._any_batch = self._graph.input(0).get_partial_shape()[0].is_dynamic
        self._requests = threading.local()

    def _compile(self, num_streams: int) -> Any:
        path, precision = self._arguments
        settings = {
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": self._num_threads,
            "INFERENCE_PRECISION_HINT": _COMPUTE_TYPES[precision],
        }
        with as_export_error(f"{path}: {runtime_name()} cannot compile it"):
            return _core.get().compile_model(self._graph, "CPU", settings)

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._num_threads == 1 or len(batch) < self._num_threads or not self._any_batch:
            return self.run_outputs(INPUT_NAME, batch)[0]
        requests = self._split_requests
        for request, part in zip(requests, np.array_split(batch, len(requests)), strict=True):
            request.start_async({INPUT_NAME: np.ascontiguousarray(part)})
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    @property
    def _split_requests(self) -> list[Any]:
        """The calling thread's requests, one for each thread that takes part of a batch."""
        if not hasattr(self._requests, "parts"):
            self._requests.parts = [
                self._split_model.create_infer_request() for _ in range(self._num_threads)
            ]
        return self._requests.parts

    @cached_property
    def _split_model(self) -> Any:
        return self._compile(num_streams=self._num_threads)

    def run_outputs(self, input_name: str, value: np.ndarray) -> list[np.ndarray]:
        # A request serves one call at a time
        if not hasattr(self._requests, "request"):
            self._requests.request = self.compiled.create_infer_request()
        results = self._requests.request.infer({input_name: np.ascontiguousarray(value)})
        return [results[output].copy() for output in self.compiled.outputs]


def _describe_value(value: Any) -> dict[str, Any]:
    type_name = value.get_element_type().get_type_name()
    sizes = value.get_partial_shape()
    return {
        "name": value.get_any_name(),
        "type": _TYPE_NAMES.get(type_name, type_name),
        "shape": [size.get_length() if size.is_static else None for size in sizes],
    }
