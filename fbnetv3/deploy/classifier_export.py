"""Export a classifier: write it to a temporary folder, compare it with the network, and only then keep the folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.data import Preprocessing
from fbnetv3.deploy.exported_folder import Exported, new_folder, open_classifier, write_manifest, write_preprocessing
from fbnetv3.deploy.formats.export_format import INPUT_NAME, OUTPUT_NAME, ExportFormat, get_format
from fbnetv3.deploy.formats.graph_preparation import export_program
from fbnetv3.deploy.formats.int8 import Int8, check_int8_support, quantize_model_file
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.input_images import ClassifierImage, load_image, sample_images
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor, preprocessing_to_dict
from fbnetv3.errors import ExportError, UsageError

TOLERANCE = 1e-4
"""Largest difference between a logit of the export and of the network, relative to the image's largest logit."""


def export_classifier(
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    format: str = "onnx",
    any_size: bool = False,
    images: Sequence[ClassifierImage] | None = None,
    name: str = "network",
    command: str = "",
    tolerance: float = TOLERANCE,
    int8: Int8 | None = None,
) -> Exported:
    """Export a classifier into a new folder, which appears only if the export gives the network's logits.

    Args:
        model: maps (N, channels, H, W) to logits (N, classes); it is not changed.
        preprocessing: turns images into the network's input.
        classes: names of the network's outputs.
        output: the folder to create; an existing folder must be empty.
        format: "onnx", "executorch", "torch-export" or a name registered in `FORMATS`.
        any_size: make the input's height and width dynamic; not for executorch.
        images: images to compare on (at least one); default: `sample_images`.
        name: name of the network.
        command: the command that exports it, for the manifest.
        tolerance: maximum difference of a logit, relative to the largest logit of its image.
        int8: how to quantize the verified export; for onnx and executorch.

    Raises:
        UsageError: an argument is wrong, or the folder is in use.
        UnknownNameError: no such format.
        MissingPackageError: the format's packages are not installed; the message says what to install.
        ExportError: the network cannot be exported, or the export differs from it, or int8 loses too much accuracy.
        DataError: an image to compare on is corrupt.
        OutputError: the folder cannot be written.
    """
    # Check the arguments before the slow steps
    export_format = get_format(format)
    _check_arguments(export_format, format, preprocessing, classes, any_size, int8)
    images = sample_images(preprocessing.channels) if images is None else images
    if not images:
        raise UsageError("images is empty: pass at least one image to verify the export")
    examples = [load_image(image, f"images[{i}]") for i, image in enumerate(images)]
    reference = copy.deepcopy(model).cpu().eval()
    original = ClassifierPredictor(TorchRuntime(reference), preprocessing, classes, name)
    expected = original.logits(examples)  # first, so that wrong images and class names fail early
    output = Path(output).expanduser()

    with new_folder(output) as folder:
        # 1. Write the model file
        path = folder / export_format.file_name
        program = _trace(reference, export_format, preprocessing, any_size)
        export_format.write(program, path)
        write_preprocessing(folder, preprocessing_to_dict(preprocessing), classes)

        # 2. Load it again and compare
        exported = open_classifier(folder, format, name)
        runtime = exported.runtime.name
        differences = [relative_difference(exported.logits(examples), expected)]
        if export_format.supports_any_batch:  # a single image may take other kernels
            differences.append(relative_difference(exported.logits(examples[0]), expected[:1]))
        if any_size:
            differences.append(_difference_at_larger_size(exported, original, examples))
        difference = float(np.max(differences))  # NaN if any is NaN
        if not difference <= tolerance:  # true for NaN too
            raise ExportError(
                f"{name}: the logits of {runtime} differ from the network's by {difference:.1e} of the largest logit; "
                f"at most {tolerance:.0e} is allowed. Nothing was exported; "
                "please report this, or raise `tolerance`"
            )
        verification: dict[str, Any] = {
            "images": len(examples),
            "largest_relative_difference": difference,
            "tolerance": tolerance,
            "runtime": runtime,
        }

        # 3. Quantize, compare again, and write the manifest
        if int8:
            verification["int8"] = quantize_model_file(program, path, export_format, exported, int8)
        manifest = write_manifest(
            folder,
            network=name,
            format=format,
            **_describe_tensors(export_format, preprocessing, len(classes), any_size),
            command=command,
            verification=verification,
        )
    return Exported(output, output / export_format.file_name, manifest)


def _check_arguments(
    export_format: ExportFormat,
    format: str,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    any_size: bool,
    int8: Int8 | None,
) -> None:
    export_format.import_packages()
    if any_size and not export_format.supports_any_size:
        raise UsageError(f"any_size: {format} files take inputs of one size; choose a different format")
    if preprocessing.channels not in (1, 3):
        raise UsageError(f"the preprocessing must have 1 or 3 channels, not {preprocessing.channels}")
    if not classes:
        raise UsageError("classes is empty: pass one class name per output")
    if int8:
        check_int8_support(int8, format)


def _trace(
    model: nn.Module, export_format: ExportFormat, preprocessing: Preprocessing, any_size: bool
) -> torch.export.ExportedProgram:
    """Trace a network with the dynamic axes that the format supports."""
    side = preprocessing.resolution
    # Choose example sizes that let the axes be dynamic
    batch_size = 1
    dynamic_axes = []
    if export_format.supports_any_batch:
        batch_size = 2  # axes of size 1 cannot be dynamic
        dynamic_axes += [0]
    if any_size:
        side = round(1.5 * side)  # for small inputs, several feature maps would share a size and be taken for equal
        dynamic_axes += [2, 3]
    example = torch.zeros(batch_size, preprocessing.channels, side, side)
    return export_program(export_format.prepare(model), example, dynamic_axes)


def _describe_tensors(
    export_format: ExportFormat, preprocessing: Preprocessing, num_classes: int, any_size: bool
) -> dict[str, dict[str, Any]]:
    """Return "input" and "output" of the manifest."""
    batch_size = None if export_format.supports_any_batch else 1
    side = None if any_size else preprocessing.resolution
    return {
        "input": {
            "name": INPUT_NAME,
            "type": "float32",
            "shape": [batch_size, preprocessing.channels, side, side],
        },
        "output": {"name": OUTPUT_NAME, "type": "float32", "shape": [batch_size, num_classes]},
    }


def _difference_at_larger_size(
    exported: ClassifierPredictor, original: ClassifierPredictor, examples: Sequence[ClassifierImage]
) -> float:
    """Return the relative difference for inputs that are larger by a third."""
    # Scale the input, and the resize before the crop, by 4/3
    preprocessing = original.preprocessing
    larger = replace(
        preprocessing,
        resolution=round(preprocessing.resolution * 4 / 3),
        resize=round(preprocessing.resize * 4 / 3),
    )
    logits = [
        ClassifierPredictor(predictor.runtime, larger, predictor.classes, predictor.name).logits(examples)
        for predictor in (exported, original)
    ]
    return relative_difference(*logits)


def relative_difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a logit, relative to its image's largest expected logit.

    Args:
        logits: (N, classes).
        expected: (N, classes).

    Returns:
        The difference; NaN if any logit is NaN.
    """
    # Images whose logits are all 0 are compared absolutely
    scale = np.abs(expected).max(axis=1, keepdims=True)
    return float((np.abs(logits - expected) / np.where(scale == 0, 1, scale)).max())
