"""Export of a classifier: written aside, compared with the network, and only then put in its place."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fbnetv3.data import Preprocessing
from fbnetv3.deploy.exported_folder import Exported, described, new_folder, write_description
from fbnetv3.deploy.formats.export_formats import FORMATS, INPUT, OUTPUT, captured, check_format, folded
from fbnetv3.deploy.formats.int8 import QUANTIZED, Int8, quantised
from fbnetv3.deploy.formats.runtimes import TorchRuntime
from fbnetv3.deploy.input_images import AnyInput, opened, sample_images
from fbnetv3.deploy.predictors.classifier_predictor import Predictor, fields_of, open_folder
from fbnetv3.errors import ExportError, UsageError

TOLERANCE = 1e-4
"""Largest difference of a logit, in parts of its image's largest, between an export and the network."""


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
    with new_folder(output) as folder:
        example, axes = _example(preprocessing, chosen.any_batch, any_size)
        program = captured(folded(reference, chosen.plain_gates), example, axes)
        chosen.write(program, folder / chosen.file)
        write_description(folder, fields_of(preprocessing), classes)
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
        manifest = described(
            folder,
            network=name,
            format=format,
            **_tensors(format, preprocessing, len(classes), any_size),
            command=command,
            verification=verification,
        )
    return Exported(output, output / chosen.file, manifest)


def _check(preprocessing: Preprocessing, classes: Sequence[str], format: str, any_size: bool) -> None:
    check_format(format)
    if any_size and not FORMATS[format].any_batch:
        raise UsageError(f"{format} files have inputs of one size: leave the open size out, or choose another format")
    if preprocessing.channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, not {preprocessing.channels}")
    if not classes:
        raise UsageError("no class names")


def _example(preprocessing: Preprocessing, any_batch: bool, any_size: bool) -> tuple[Tensor, list[int]]:
    """An input to capture the network with, and its axes that stay open."""
    side = preprocessing.resolution
    if any_size:
        side = round(1.5 * side)  # the smallest maps of small inputs have sizes of their own
    example = torch.zeros(2 if any_batch else 1, preprocessing.channels, side, side)
    return example, ([0] if any_batch else []) + ([2, 3] if any_size else [])


def _tensors(format: str, preprocessing: Preprocessing, num_classes: int, any_size: bool) -> dict[str, dict[str, Any]]:
    """The manifest's "input" and "output"."""
    batch = None if FORMATS[format].any_batch else 1
    side = None if any_size else preprocessing.resolution
    shape = [batch, preprocessing.channels, side, side]
    return {
        "input": {"name": INPUT, "type": "float32", "shape": shape},
        "output": {"name": OUTPUT, "type": "float32", "shape": [batch, num_classes]},
    }


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
