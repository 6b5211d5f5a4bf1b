"""Export a classifier: write it to a temporary folder, compare it with the network, and only then keep the folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from fbnetv3.data import Preprocessing
from fbnetv3.data.preprocessing_values import preprocessing_to_dict
from fbnetv3.deploy.exported_folder import (
    ExportedNetwork,
    atomic_folder,
    open_classifier,
    write_manifest,
    write_preprocessing,
)
from fbnetv3.deploy.formats.export_format import (
    FLOAT32,
    INPUT_NAME,
    OUTPUT_NAME,
    export_program,
    formats_supporting,
    get_format,
)
from fbnetv3.deploy.formats.quantization import (
    PrecisionSettings,
    reduce_and_compare,
    reduce_precision,
)
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.input_images import ClassifierImage, load_image, sample_classifier_images
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.utils.files import expand_path

# Largest difference between a logit of the export and of the network, relative to the image's largest logit
TOLERANCE = 1e-4


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
    precision: PrecisionSettings | None = None,
    multi_label: bool = False,
) -> ExportedNetwork:
    """Export a classifier into a new folder, which is created only if the export gives the same logits as the network.

    Args:
        model: the network, which maps (N, channels, H, W) to logits (N, classes); it is not changed.
        preprocessing: the steps from an image to the network's input.
        classes: names of the network's outputs.
        output: the folder to create; an existing folder must be empty.
        format: a name registered in `FORMATS`, such as "onnx".
        any_size: whether the export takes images of any height and width; not in every format.
        images: images to compare the export on; default: `sample_classifier_images`.
        name: name of the network, for messages and the manifest.
        command: the command that exports the network, for the manifest.
        tolerance: maximum difference of a logit, relative to the largest logit of its image.
        precision: lower precision than float32 to reduce the verified export to; each format offers some.
        multi_label: whether images have several labels, so that probabilities are sigmoids of the logits.

    Raises:
        UnknownNameError: the format is not registered.
        UsageError: the format does not support an option, or the output folder is not empty.
        MissingPackageError: the format's packages are not installed; the message says what to install.
        DataError: one of `images` is missing, corrupt or not an image.
        ExportError: the network cannot be exported, the export differs from it, int8 loses too much accuracy, or the
            number of class names is wrong.
        OutputError: the folder cannot be written.
    """
    # Check the arguments before the slow steps
    export_format = get_format(format)
    export_format.import_packages()
    wanted = {"any_size": any_size, "reduce_range": precision is not None and precision.reduce_range}
    if precision is not None:
        wanted[precision.precision] = True
    for option in (option for option, is_wanted in wanted.items() if is_wanted):
        formats = formats_supporting(option)
        if format not in formats:
            raise UsageError(f"{option} is available for {', '.join(formats)}, not for {format}")
    images = sample_classifier_images(preprocessing.channels) if images is None else images
    if not len(images):
        raise UsageError(
            "images is empty: pass images to compare the export on, or None for the sample images"
        )
    examples = [load_image(image, f"images[{i}]", preprocessing.channels) for i, image in enumerate(images)]
    reference = copy.deepcopy(model).cpu().eval()
    original = ClassifierPredictor(TorchRuntime(reference), preprocessing, classes, name)
    # Run the network before the export, so that wrong images and class names fail early
    expected = original.logits(examples)
    # The sizes of these axes of the input can change at run time
    dynamic_axes = [0] if export_format.supports_any_batch else []
    if any_size:
        dynamic_axes += [2, 3]
    output = expand_path(output)

    with atomic_folder(output) as folder:
        # 1. Write the model file
        path = folder / export_format.file_name
        program = _trace(export_format.prepare(reference), preprocessing, dynamic_axes)
        export_format.write(program, path)
        write_preprocessing(folder, preprocessing_to_dict(preprocessing), classes)

        # 2. Load it again and compare, and once more after reducing the precision
        verification: dict[str, Any]
        if reason := export_format.why_not_run_here():
            verification = {"not_run": reason}
            if precision:
                reduce_precision(program, path, export_format, original, precision)
        else:
            predictor = open_classifier(
                folder, name, partial(export_format.open, path), multi_label=multi_label
            )
            verification = _compare(predictor, original, examples, expected, dynamic_axes, tolerance)
            if precision:
                verification[precision.precision] = reduce_and_compare(
                    program, path, export_format, predictor, precision
                )

        # 3. Write what else the format has, and the manifest
        export_format.add_files(folder)
        side = preprocessing.resolution
        sizes = (1, preprocessing.channels, side, side)
        shape = [None if axis in dynamic_axes else size for axis, size in enumerate(sizes)]
        manifest = write_manifest(
            folder,
            network=name,
            format=format,
            precision=precision.precision if precision else FLOAT32,
            input={"name": INPUT_NAME, "type": "float32", "shape": shape},
            output={
                "name": OUTPUT_NAME,
                "type": "float32",
                "shape": [shape[0], len(classes)],
                "activation": "sigmoid" if multi_label else "softmax",
            },
            command=command,
            verification=verification,
        )
    return ExportedNetwork(output, output / export_format.file_name, manifest)


def _trace(model: nn.Module, preprocessing: Preprocessing, dynamic_axes: Sequence[int]) -> ExportedProgram:
    batch_size = 2 if 0 in dynamic_axes else 1  # axes of size 1 cannot be dynamic
    side = preprocessing.resolution
    if 2 in dynamic_axes:
        # With a small input, feature maps that happen to have the same size would be assumed to be always equal
        side = round(1.5 * side)
    example = torch.zeros(batch_size, preprocessing.channels, side, side)
    return export_program(model, example, dynamic_axes)


def _compare(
    predictor: ClassifierPredictor,
    original: ClassifierPredictor,
    examples: Sequence[ClassifierImage],
    expected: np.ndarray,
    dynamic_axes: Sequence[int],
    tolerance: float,
) -> dict[str, Any]:
    """Compare the export's logits with the network's, `expected`, and return the manifest's "verification"."""
    runtime = predictor.runtime.name
    differences = [relative_difference(predictor.logits(examples), expected)]
    if 0 in dynamic_axes:
        # A single image may run through different kernels
        differences.append(relative_difference(predictor.logits(examples[0]), expected[:1]))
    if 2 in dynamic_axes:
        differences.append(_difference_at_larger_size(predictor, original, examples))
    difference = float(np.max(differences))  # NaN if any is NaN
    if not difference <= tolerance:  # true for NaN too
        raise ExportError(
            f"{original.name}: the logits of {runtime} differ from the network's by up to {difference:.1e}, relative "
            f"to the image's largest logit; the tolerance is {tolerance:.0e}. Nothing was exported"
        )
    return {
        "images": len(examples),
        "largest_relative_difference": difference,
        "tolerance": tolerance,
        "runtime": runtime,
    }


def _difference_at_larger_size(
    predictor: ClassifierPredictor, original: ClassifierPredictor, examples: Sequence[ClassifierImage]
) -> float:
    """Return the relative difference of the logits for inputs that are larger by a third."""
    preprocessing = original.preprocessing
    resolution = round(preprocessing.resolution * 4 / 3)
    resize = round(preprocessing.resize * 4 / 3)
    larger = replace(preprocessing, resolution=resolution, resize=resize)
    logits = [replace(network, preprocessing=larger).logits(examples) for network in (predictor, original)]
    return relative_difference(*logits)
