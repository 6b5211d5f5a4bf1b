"""Export of a classifier: written aside, compared with the network, and only then put in its place."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from torch import nn

from fbnetv3.data import Preprocessing
from fbnetv3.deploy.bundle import Manifest, checksums, tensors, versions, write_description, write_manifest
from fbnetv3.deploy.formats import FORMATS, captured, folded, needed
from fbnetv3.deploy.images import AnyInput, opened, sample_images
from fbnetv3.deploy.int8 import QUANTIZED, Int8, quantised
from fbnetv3.deploy.predictor import Predictor, open_folder
from fbnetv3.deploy.runtimes import TorchRuntime
from fbnetv3.errors import ExportError, OutputError, UsageError, UserError, suggest
from fbnetv3.file_io import PARTIAL

TOLERANCE = 1e-4
"""Largest difference of a logit, in parts of its image's largest, between an export and the network."""


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        folder: where it lies.
        model: the model's file in it.
        manifest: what the folder holds.
    """

    folder: Path
    model: Path
    manifest: Manifest


def export_classifier(
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    format: str = "onnx",
    any_size: bool = False,
    images: Sequence[AnyInput] | None = None,
    name: str = "network",
    command: str = "",
    tolerance: float = TOLERANCE,
    int8: Int8 | None = None,
) -> Exported:
    """Export a classifier into a new folder. The folder is there when the export answers as the network does, and not
    at all otherwise.

    Args:
        model: from (N, channels, H, W) to logits (N, classes); left as it is.
        preprocessing: how images become its input.
        classes: names of its outputs.
        output: the folder to make; it may exist, if it is empty.
        format: onnx, executorch or torch-export.
        any_size: leave the input's height and width open too; not for executorch.
        images: what to compare on, at least one; default: `sample_images`.
        name: of the network.
        command: what to note in the manifest as the origin.
        tolerance: largest difference of a logit, in parts of its image's largest, that passes.
        int8: quantise what has passed; for onnx and executorch.

    Raises:
        UsageError: a wrong argument, or the folder is in use.
        MissingPackageError: the format's libraries are not installed; the text says what to install.
        ExportError: the network cannot be exported, or the export differs from it, or int8 loses too much.
        DataError: an image to compare on is damaged.
        OutputError: the folder cannot be written.
    """
    _check(preprocessing, classes, format, any_size)
    if int8 and (format not in QUANTIZED or (int8.reduce_range and format != "onnx")):
        what, made = ("reduce_range", "onnx") if int8.reduce_range else ("int8", " and ".join(QUANTIZED))
        raise UsageError(f"{what} is made for {made}, not for {format}")
    given = sample_images(preprocessing.channels) if images is None else images
    if not given:
        raise UsageError("no image to compare the export on")
    examples = [opened(image, f"images[{i}]") for i, image in enumerate(given)]
    reference = copy.deepcopy(model).cpu().eval()
    original = Predictor(TorchRuntime(reference), preprocessing, classes, name)
    expected = original.logits(examples)
    chosen, output = FORMATS[format], Path(output).expanduser()
    with _new_folder(output) as folder:
        shape = (preprocessing.channels, preprocessing.resolution)
        program = captured(folded(reference, chosen.plain_gates), *shape, any_batch=chosen.any_batch, any_size=any_size)
        chosen.write(program, folder / chosen.file)
        write_description(folder, preprocessing, list(classes))
        found = open_folder(folder, format, name)
        difference = relative_difference(found.logits(examples), expected)
        if chosen.any_batch:
            difference = max(difference, relative_difference(found.logits(examples[0]), expected[:1]))
        if any_size:
            difference = max(difference, _at_another_size(found, original, examples))
        _refuse(difference, tolerance, found.runtime.name, name)
        verification = {
            "images": len(examples),
            "largest_relative_difference": difference,
            "tolerance": tolerance,
            "runtime": found.runtime.name,
        }
        if int8:
            verification["int8"] = quantised(program, folder, format, found, int8)
        about = tensors(format, preprocessing, len(classes), any_size)
        files, made_by = checksums(folder, format), versions(format)
        manifest = Manifest(
            name, format, **about, files=files, versions=made_by, command=command, verification=verification
        )
        write_manifest(folder, manifest)
    return Exported(output, output / chosen.file, manifest)


def _check(preprocessing: Preprocessing, classes: Sequence[str], format: str, any_size: bool) -> None:
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': {suggest(format, FORMATS)}")
    if any_size and not FORMATS[format].any_batch:
        raise UsageError(f"{format} files have inputs of one size: leave the open size out, or choose another format")
    if preprocessing.channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, not {preprocessing.channels}")
    if not classes:
        raise UsageError("no class names")
    for package in FORMATS[format].packages:
        with needed(package):
            import_module(package)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of a logit, in parts of its image's largest; both are (N, classes). NaN if any is NaN."""
    scale = np.abs(expected).max(axis=1, keepdims=True)
    return float((np.abs(found - expected) / np.where(scale == 0, 1, scale)).max())


def _at_another_size(found: Predictor, original: Predictor, examples: Sequence[AnyInput]) -> float:
    """The relative difference for inputs that are larger by a third."""
    sides = {key: round(getattr(original.preprocessing, key) * 4 / 3) for key in ("resolution", "resize")}
    larger = replace(original.preprocessing, **sides)
    answers = (Predictor(p.runtime, larger, p.classes, p.name).logits(examples) for p in (found, original))
    return relative_difference(*answers)


def _refuse(difference: float, tolerance: float, runtime: str, name: str) -> None:
    if not difference <= tolerance:  # NaN too
        raise ExportError(
            f"{name}: {runtime} answers differently from the network, by {difference:.1e} of the largest logit where "
            f"{tolerance:.0e} is allowed: nothing was exported"
        )


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and is gone when it does not.

    Raises:
        UsageError: there is something at `output` already.
        OutputError: it cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output}: is there already: choose another folder, or remove it")
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=PARTIAL))
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(output)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
