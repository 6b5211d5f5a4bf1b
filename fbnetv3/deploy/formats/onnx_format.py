"""ONNX files, run by ONNX Runtime on the CPU. The packages onnx, onnxscript and onnxruntime are imported when used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import (
    FLOAT32,
    INPUT_NAME,
    INT8,
    OUTPUT_NAME,
    ExportFormat,
    Runtime,
    as_export_error,
    require_packages,
)
from fbnetv3.deploy.process_local import ProcessLocal
from fbnetv3.errors import MissingPackageError, UsageError
from fbnetv3.modeling.torch_device import AUTO_DEVICE, CPU, parse_device

# ONNX Runtime sends usage data, and warns if it cannot store an identifier for it in the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    import onnx

AXIS_NAMES = {0: "batch", 2: "height", 3: "width"}
"""Names of the input's axes whose size is dynamic."""
CUDA_PROVIDER = "CUDAExecutionProvider"
_CPU_PROVIDER = "CPUExecutionProvider"
Provider = tuple[str, dict[str, Any]]
"""Name and options of an execution provider: the part of ONNX Runtime that computes on one kind of device."""
_TYPE_NAMES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


class OnnxFormat(ExportFormat):
    """`model.onnx`, with hard swish and hard sigmoid as single operators, for ONNX Runtime and other runtimes."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    runtime_package = "onnxruntime"
    precisions = (FLOAT32, INT8)
    supports_reduce_range = True
    selects_float_layers = True

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the file with `write_onnx`."""
        write_onnx(program, path)

    def write_from_onnx(self, source: Path, path: Path) -> None:
        """Copy the file."""
        shutil.copyfile(source, path)

    def open(self, path: Path, precision: str = FLOAT32) -> OnnxRuntime:
        """Open the file in ONNX Runtime."""
        return OnnxRuntime(path)

    def runtimes(self, precision: str = FLOAT32) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return ONNX Runtime and OpenVINO, which reads ONNX files, too."""
        from fbnetv3.deploy.formats.openvino_format import OpenVinoRuntime

        return {**super().runtimes(precision), "openvino": OpenVinoRuntime}

    def device_runtimes(self) -> dict[str, Callable[[Path, str], Runtime]]:
        """Return ONNX Runtime."""
        return {self.runtime_package: OnnxRuntime}

    def reduce_precision(
        self,
        program: ExportedProgram,
        path: Path,
        precision: str,
        batches: Iterable[np.ndarray],
        reduce_range: bool,
    ) -> None:
        """Quantize the file with `quantize_onnx`."""
        from fbnetv3.deploy.formats.onnx_quantization import quantize_onnx

        quantize_onnx(path, batches, reduce_range)

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
        """Quantize the file with `quantize_onnx`."""
        from fbnetv3.deploy.formats.onnx_quantization import quantize_onnx

        quantize_onnx(path, batches, reduce_range, float_layers=float_layers, layer_ranges=ranges)


def write_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    input_name: str = INPUT_NAME,
    output_names: Sequence[str] = (OUTPUT_NAME,),
    axis_names: Mapping[int, str] = AXIS_NAMES,
    custom_operators: dict[Any, Callable] | None = None,
) -> None:
    """Write an ONNX file; `axis_names` are for the input's dynamic axes, `custom_operators` has ONNX translations."""
    import onnx
    from onnxscript import optimizer

    with as_export_error("torch.onnx cannot export this network"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=(dict(axis_names),),
            custom_translation_table=custom_operators,
            verbose=False,
        )
        assert exported is not None  # with dynamo=True
        model = exported.model_proto
        _replace_means_with_pools(model.graph)
        optimizer.remove_unused_nodes(model)
        _remove_metadata(model.graph)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))


def _replace_means_with_pools(graph: onnx.GraphProto) -> None:
    """Replace means over height and width with pools, which ONNX Runtime computes in the layout of convolutions."""
    from onnx import numpy_helper

    # The axes of a mean are an initializer with two elements; -1 and 3 are the same axis
    pairs = [tensor for tensor in graph.initializer if list(tensor.dims) == [2]]
    spatial_axes = {tensor.name for tensor in pairs if sorted(numpy_helper.to_array(tensor) % 4) == [2, 3]}
    for node in graph.node:
        keeps_axes = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
        # A mean over all axes has no second input
        if node.op_type == "ReduceMean" and keeps_axes and spatial_axes.intersection(node.input[1:]):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]


def _remove_metadata(graph: onnx.GraphProto) -> None:
    """Remove stack traces, which contain paths of the machine that exported the network."""
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


class OnnxRuntime:
    """ONNX Runtime, with as many CPU threads as torch uses; takes the path or the content of an ONNX file.

    By default all threads share the work on each layer. A batch of at least as many images as threads is split
    instead: each thread takes some images through all layers, so that threads never wait for one another.

    It can be pickled, and used after a fork: each process opens the file, or the content, for itself.

    Args:
        model: path or content of the file.
        device: "cpu", "cuda" or "cuda:1"; "auto" is a GPU if this build of ONNX Runtime can use one.

    Raises:
        ExportError: the file cannot be read.
        MissingPackageError: the device is a GPU, and this build of ONNX Runtime is for CPUs only.
        UsageError: ONNX Runtime cannot use the device.
    """

    def __init__(self, model: Path | bytes, device: str = CPU) -> None:
        with require_packages("onnxruntime"):
            import onnxruntime
        self.name = f"onnxruntime {onnxruntime.__version__}"
        providers = choose_providers(device, onnxruntime.get_available_providers())
        source = model if isinstance(model, bytes) else str(model)
        self._model = ProcessLocal(partial(_OpenModel, source, self.name, device, providers))
        if self._model.get().is_on_gpu:  # opened now, so that a file that cannot be read is an error here
            self.name += " on a GPU" if device == AUTO_DEVICE else f" on {device}"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        model = self._model.get()
        if len(batch) < model.num_threads or not model.can_split:
            return self.run_outputs(INPUT_NAME, batch)[0]
        session, pool = model.split_session
        parts = np.array_split(batch, model.num_threads)
        outputs = pool.map(lambda part: session.run(None, {INPUT_NAME: part})[0], parts)
        return np.concatenate(list(outputs))

    def run_outputs(self, input_name: str, value: np.ndarray) -> list[np.ndarray]:
        """Return all outputs for the one input, which is called `input_name`."""
        return self._model.get().session.run(None, {input_name: value})

    def describe_inputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each input, where None means any size."""
        return [_describe_value(value) for value in self._model.get().session.get_inputs()]

    def describe_outputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each output, where None means any size."""
        return [_describe_value(value) for value in self._model.get().session.get_outputs()]


class _OpenModel:
    """A model in the memory of this process: its session, and the threads that share a batch."""

    def __init__(
        self, source: str | bytes, runtime_name: str, device: str, providers: Sequence[Provider]
    ) -> None:
        self._source = source
        self._runtime_name = runtime_name
        self._device = device
        self._providers = providers
        self.num_threads = torch.get_num_threads()
        self.session = self._open_session(self.num_threads)
        self.is_on_gpu = CUDA_PROVIDER in self.session.get_providers()
        if device not in (CPU, AUTO_DEVICE) and not self.is_on_gpu:
            # ONNX Runtime only logs that it could not load the provider, and uses the CPU
            raise UsageError(
                f"device {device!r}: {runtime_name} finds no GPU, or not the libraries of CUDA and cuDNN: run pip "
                "install 'onnxruntime-gpu[cuda,cudnn]', or set it to auto or cpu"
            )
        any_batch = not isinstance(self.session.get_inputs()[0].shape[0], int)
        self.can_split = any_batch and self.num_threads > 1 and not self.is_on_gpu

    @cached_property
    def split_session(self) -> tuple[Any, ThreadPoolExecutor]:
        """A session that uses only the calling thread, and threads to call it from."""
        return self._open_session(1), ThreadPoolExecutor(self.num_threads, "onnxruntime")

    def _open_session(self, num_threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        name = "the graph" if isinstance(self._source, bytes) else self._source
        problem = f"{name}: {self._runtime_name} cannot read it; export it again"
        if self._device not in (CPU, AUTO_DEVICE):
            problem = f"{name}: {self._runtime_name} cannot run it on device {self._device!r}"
        with as_export_error(problem):
            return onnxruntime.InferenceSession(
                self._source,
                options,
                providers=self._providers,
                # Otherwise a device that fails is replaced with the CPU
                enable_fallback=self._device == AUTO_DEVICE,
            )


def choose_providers(device: str, available: Sequence[str]) -> list[Provider]:
    """Return ONNX Runtime's providers for a device, among those `available` in this build, with their options.

    The CPU's is always the last: it runs the operators that a GPU does not have.

    Raises:
        MissingPackageError: the device is a GPU, and this build is for CPUs only.
        UsageError: ONNX Runtime does not compute on such a device here.
    """
    cpu: Provider = (_CPU_PROVIDER, {})
    if device == CPU or (device == AUTO_DEVICE and CUDA_PROVIDER not in available):
        return [cpu]
    gpu = parse_device("cuda" if device == AUTO_DEVICE else device)
    if gpu.type != "cuda":
        raise UsageError(
            f"device {device!r}: ONNX Runtime computes on cpu or cuda here: set it to one of them"
        )
    if CUDA_PROVIDER not in available:
        raise MissingPackageError(
            f"device {device!r}: this onnxruntime is for CPUs only: run pip uninstall onnxruntime, then pip install "
            "'onnxruntime-gpu[cuda,cudnn]', or set it to auto or cpu"
        )
    # In float32, as the export was verified, rather than in TF32
    return [(CUDA_PROVIDER, {"device_id": gpu.index or 0, "use_tf32": 0}), cpu]


def _describe_value(value: Any) -> dict[str, Any]:
    return {
        "name": value.name,
        "type": _TYPE_NAMES.get(value.type, value.type),
        "shape": [size if isinstance(size, int) else None for size in value.shape],
    }
