"""From a network to a file that another runtime reads: ONNX, ExecuTorch, torch.export."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fbnetv3.errors import ExportError, MissingPackageError, UsageError, UserError, suggest

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "logits"
AXES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Format:
    """A file format of exported networks.

    Attributes:
        file: name of the model's file.
        runtime: what runs it.
        packages: what writes and runs it besides torch.
        any_batch: whether a file takes batches of any size; else one image at a time.
        plain_gates: see `folded`.
        write: writes a program to a path.
    """

    file: str
    runtime: str
    packages: tuple[str, ...]
    any_batch: bool
    plain_gates: bool
    write: Callable[[torch.export.ExportedProgram, Path], None]


@contextlib.contextmanager
def needed(*packages: str) -> Iterator[None]:
    """Turns a failing import into an error that says what to install.

    Raises:
        MissingPackageError: an import in the block fails.
    """
    try:
        yield
    except ImportError as error:
        wanted = " ".join(packages)
        raise MissingPackageError(f"{wanted} cannot be imported ({error}): run pip install {wanted}") from None


class Mean(nn.Module):
    """A global average pool as a mean, which no exporter takes apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class _PlainHardsigmoid(nn.Module):
    """A hard sigmoid in the operations that XNNPACK has, so that its graph is not broken at each gate."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([3.0]))
        self.register_buffer("scale", torch.tensor([1 / 6]))

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(x + self.shift, 0.0, 6.0) * self.scale


def folded(model: nn.Module, plain_gates: bool = False) -> nn.Module:
    """A copy of a network for inference alone: every BatchNorm right behind a convolution folded into it, nothing in
    place, nothing that could be trained. Its outputs are the same up to rounding.

    Args:
        model: the network.
        plain_gates: hard sigmoids as a sum, a clamp and a product.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    model = model.to(memory_format=torch.contiguous_format)  # ExecuTorch fails on some whose weights are channels-last
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for first, second in zip(range(len(module)), range(1, len(module)), strict=False):
                conv, norm = module[first], module[second]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[first] = fuse_conv_bn_eval(conv, norm)
                    module[second] = nn.Identity()
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, Mean())
            elif plain_gates and isinstance(child, nn.Hardsigmoid):
                setattr(module, name, _PlainHardsigmoid())
    return model.requires_grad_(False)


def captured(model: nn.Module, example: Tensor, open_axes: Sequence[int] = ()) -> torch.export.ExportedProgram:
    """The graph of a network, by torch.export.

    Args:
        model: in evaluation mode, of one input.
        example: an input.
        open_axes: of the input, whose sizes stay open.

    Raises:
        ExportError: the network has something that cannot be captured.
    """
    with explained("torch.export"), torch.no_grad():
        return torch.export.export(
            model, (example,), dynamic_shapes=(dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC),)
        )


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    input: str = INPUT,
    outputs: Sequence[str] = (OUTPUT,),
    axes: Mapping[int, str] = AXES,
    operators: Callable[[], dict[Any, Callable]] = dict,
) -> None:
    """One ONNX file.

    Args:
        program: what `captured` gives.
        path: the file.
        input, outputs: what to call them.
        axes: what to call the open sizes of the input.
        operators: gives how operators are written that torch does not know how to; asked once onnxscript is there.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        ExportError: the exporter fails.
    """
    with needed("onnx", "onnxscript"):
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter imports it
    with explained("torch.onnx"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[input],
            output_names=list(outputs),
            custom_translation_table=operators(),
            verbose=False,
        )
        assert exported is not None  # with dynamo
        model = exported.model_proto
    _pool(model.graph)
    _tidy(model.graph, axes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _pool(graph: onnx.GraphProto) -> None:
    """Means over height and width as pools, which ONNX Runtime computes in the memory order of convolutions."""
    from onnx import numpy_helper

    small = [weight for weight in graph.initializer if list(weight.dims) == [2]]
    axes = {weight.name for weight in small if sorted(numpy_helper.to_array(weight) % 4) == [2, 3]}
    for node in graph.node:
        kept = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
        if node.op_type == "ReduceMean" and kept and node.input[1] in axes:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    used = set(_read_in(graph))
    for weight in [weight for weight in small if weight.name not in used]:
        graph.initializer.remove(weight)


def _read_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the nodes of a graph read, and those of the graphs inside them."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _read_in(attribute.g)


def _tidy(graph: onnx.GraphProto, axes: Mapping[int, str]) -> None:
    """Open sizes by names that say what they are, and nothing about the machine that exported it."""
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in axes.items() if sizes[axis].dim_param}
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param)
    for part in (graph, *values, *graph.node, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def write_executorch(program: torch.export.ExportedProgram, path: Path) -> None:
    """An ExecuTorch file whose arithmetic is XNNPACK's wherever XNNPACK has it.

    Raises:
        MissingPackageError: executorch is not installed.
        ExportError: the network cannot be lowered.
    """
    with needed("executorch"), silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    with explained("ExecuTorch"):
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    with path.open("wb") as f:
        lowered.write_to_file(f)


def write_torch_export(program: torch.export.ExportedProgram, path: Path) -> None:
    """A .pt2 archive for `torch.export.load`."""
    archive = io.BytesIO()  # torch's own writer ends the process where the disk is full
    with explained("torch.export"):
        torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())


FORMATS = {
    "onnx": Format("model.onnx", "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), True, False, write_onnx),
    "executorch": Format("model.pte", "ExecuTorch", ("executorch",), False, True, write_executorch),
    "torch-export": Format("model.pt2", "torch", (), True, False, write_torch_export),
}


def check_format(format: str) -> None:
    """Whether files of a format can be written and run here.

    Raises:
        UsageError: no such format.
        MissingPackageError: a library is not installed; the text says what to install.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': {suggest(format, FORMATS)}")
    for package in FORMATS[format].packages:
        with needed(package):
            import_module(package)


@contextlib.contextmanager
def explained(exporter: str) -> Iterator[None]:
    """Exporters raise almost anything: one sentence of it. Their warnings are for their authors.

    Raises:
        ExportError: whatever the block raises, but for users' errors, want of memory, and what the system refuses.
    """
    try:
        with silent():
            yield
    except (MemoryError, OSError, UserError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{exporter} cannot take this network: {reason}") from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the exporters' warnings, which are for their authors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
