"""ONNX files, run by ONNX Runtime on the CPU. onnx, onnxscript and onnxruntime are imported when they are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fbnetv3.deploy.formats.export_errors import as_export_errors, require_packages, unreadable_model
from fbnetv3.deploy.formats.export_format import INPUT_NAME, OUTPUT_NAME, ExportFormat
from fbnetv3.utils.logging_setup import suppress_warnings

if TYPE_CHECKING:
    import onnx

AXIS_NAMES = {0: "batch", 2: "height", 3: "width"}
"""Names of the input's axes whose size is dynamic."""


class OnnxFormat(ExportFormat):
    """`model.onnx`: one operator for each hard swish and hard sigmoid, for ONNX Runtime and other ONNX runtimes."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    runtime_package = "onnxruntime"
    supports_int8 = True
    supports_reduce_range = True

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        """Write the file with `write_onnx`."""
        write_onnx(program, path)

    def open(self, path: Path) -> OnnxRuntime:
        """Open the file in ONNX Runtime."""
        return OnnxRuntime(path)

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Quantize the file with `quantize_onnx`."""
        with require_packages("onnx", "onnxruntime"), suppress_warnings():
            from fbnetv3.deploy.formats.onnx_quantization import quantize_onnx
        quantize_onnx(path, batches, reduce_range)


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    input_name: str = INPUT_NAME,
    output_names: Sequence[str] = (OUTPUT_NAME,),
    axis_names: Mapping[int, str] = AXIS_NAMES,
    custom_operators: Callable[[], dict[Any, Callable]] = dict,
) -> None:
    """Write an ONNX file.

    Args:
        program: the result of `export_program`.
        path: the file.
        input_name: name of the input.
        output_names: names of the outputs.
        axis_names: names for the dynamic axes of the input.
        custom_operators: returns ONNX translations of custom operators; called once onnxscript is imported.
    """
    with require_packages("onnx", "onnxscript"):
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter imports it
    # Translate the program
    with as_export_errors("torch.onnx"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[input_name],
            output_names=list(output_names),
            custom_translation_table=custom_operators(),
            verbose=False,
        )
        assert exported is not None  # with dynamo=True
        model = exported.model_proto
    # Clean up and check
    _replace_means_by_pools(model.graph)
    _name_dynamic_axes(model.graph, axis_names)
    _remove_metadata(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _replace_means_by_pools(graph: onnx.GraphProto) -> None:
    """Turn means over height and width into pools, which ONNX Runtime computes in the memory layout of convolutions."""
    from onnx import numpy_helper

    # Initializers with two elements may hold the axes of a mean; -1 and 3 are the same axis
    pairs = [tensor for tensor in graph.initializer if list(tensor.dims) == [2]]
    spatial_axes = {tensor.name for tensor in pairs if sorted(numpy_helper.to_array(tensor) % 4) == [2, 3]}
    for node in graph.node:
        keeps_axes = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
        axes_name = node.input[1] if len(node.input) > 1 else ""  # a mean over all axes has no such input
        if node.op_type == "ReduceMean" and keeps_axes and axes_name in spatial_axes:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    # The axes are now unused unless another node reads them
    names_read = set(_names_read(graph))
    for tensor in pairs:
        if tensor.name not in names_read:
            graph.initializer.remove(tensor)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that the nodes of a graph, and of the graphs inside them, read."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _names_read(attribute.g)


def _name_dynamic_axes(graph: onnx.GraphProto, axis_names: Mapping[int, str]) -> None:
    """Replace the exporter's symbols for dynamic sizes, such as s77, with readable names."""
    input_sizes = graph.input[0].type.tensor_type.shape.dim
    names = {input_sizes[axis].dim_param: name for axis, name in axis_names.items() if input_sizes[axis].dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # may be an expression, such as (s77 - 1)//2 + 1
                size.dim_param = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), size.dim_param)


def _remove_metadata(graph: onnx.GraphProto) -> None:
    """Remove stack traces, which hold paths of the machine that exported the network."""
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


class OnnxRuntime:
    """ONNX Runtime on the CPU, with as many threads as torch uses.

    By default all threads share the work on each layer. A batch of at least as many images as threads is split
    instead: each thread takes some images through all layers, so that threads never wait for one another.

    Args:
        model: path or content of an ONNX file.
    """

    def __init__(self, model: Path | bytes) -> None:
        with require_packages("onnxruntime"):
            import onnxruntime
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._num_threads = torch.get_num_threads()
        self._model = model if isinstance(model, bytes) else str(model)
        self._session = self._open_session(self._num_threads)
        self._any_batch = not isinstance(self._session.get_inputs()[0].shape[0], int)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        if self._num_threads == 1 or len(batch) < self._num_threads or not self._any_batch:
            return self.run_outputs(INPUT_NAME, batch)[0]
        session, pool = self._split_session
        parts = np.array_split(batch, self._num_threads)
        outputs = pool.map(lambda part: session.run(None, {INPUT_NAME: part})[0], parts)
        return np.concatenate(list(outputs))

    def run_outputs(self, input_name: str, value: np.ndarray) -> list[np.ndarray]:
        """Return all outputs for the one input, which is called `input_name`."""
        return self._session.run(None, {input_name: value})

    @cached_property
    def _split_session(self) -> tuple[Any, ThreadPoolExecutor]:
        """A session that uses only the calling thread, and threads to call it from."""
        return self._open_session(1), ThreadPoolExecutor(self._num_threads, "onnxruntime")

    def _open_session(self, num_threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        try:
            return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no other base class
            source = "the graph" if isinstance(self._model, bytes) else self._model
            raise unreadable_model(source, self.name, error) from error
