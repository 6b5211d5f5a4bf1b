"""Export a detector to ONNX: write it to a temporary folder, compare its detections, and only then keep the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.detector_graph.box_ops import onnx_translations
from fbnetv3.deploy.exported_folder import (
    DETECTION,
    Exported,
    new_folder,
    open_detector,
    write_manifest,
    write_preprocessing,
)
from fbnetv3.deploy.formats.export_format import get_format
from fbnetv3.deploy.formats.graph_preparation import export_program
from fbnetv3.deploy.formats.onnx_format import write_onnx
from fbnetv3.deploy.input_images import ImageLike, load_rgb_array, sample_photographs
from fbnetv3.deploy.predictors.detector_predictor import (
    DETECTOR_INPUT,
    DETECTOR_OUTPUTS,
    DetectionArrays,
    ShortSideResize,
    resize_to_dict,
)
from fbnetv3.errors import ExportError, UsageError

BOX_TOLERANCE = 0.1
"""Largest difference of a box corner from the original detector's, in pixels of the image."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of a score from the original detector's."""
MIN_EQUAL_SHARE = 0.99
"""Share of the detections that must be equal; NMS ties may resolve differently across runtimes."""
_FORMAT = "onnx"
_AXIS_NAMES = {0: "height", 1: "width"}
_EXAMPLE_SIZE = (352, 480)  # gives every feature map its own size
_OUTPUT_TENSORS: list[dict[str, Any]] = [
    {"name": name, "type": dtype, "shape": shape}
    for name, dtype, shape in zip(
        DETECTOR_OUTPUTS, ("float32", "float32", "int64"), ([None, 4], [None], [None]), strict=True
    )
]


@dataclass(frozen=True)
class Agreement:
    """How well detections match those of the original detector.

    Attributes:
        detections: number of different detections of both.
        equal: number of detections that both have: same class, box and score within the tolerances.
        box_difference: largest difference of a box corner among the equal ones, in pixels.
        score_difference: largest difference of a score among the equal ones.
    """

    detections: int
    equal: int
    box_difference: float
    score_difference: float


def write_detector(
    model: nn.Module,
    resize: ShortSideResize,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    original: Callable[[np.ndarray], DetectionArrays],
    images: Sequence[ImageLike] | None = None,
    name: str = "detector",
    command: str = "",
) -> Exported:
    """Export a detector into a new folder. The folder appears only if the export detects what the original detects.

    Args:
        model: maps an image, uint8 (H, W, 3) in RGB, to boxes (N, 4) in its pixels, scores (N,) and classes (N,), by
            operators that torch.export takes and those of `box_ops`.
        resize: resizes images for the detector.
        classes: class names.
        output: the folder to create; an existing folder must be empty.
        original: the original detector: returns the detections in an image, uint8 (H, W, 3) in RGB, of any size.
        images: images to compare on (at least one); default: `sample_photographs`.
        name: name of the detector.
        command: the command that exports it, for the manifest.

    Raises:
        UsageError: an argument is wrong, or the folder is in use.
        MissingPackageError: a package is not installed; the message says what to install.
        ExportError: the detector cannot be exported, detects nothing in the images, or the export differs from it.
        DataError: an image to compare on is corrupt.
        OutputError: the folder cannot be written.
    """
    if not classes:
        raise UsageError("classes is empty: pass one class name per output")
    onnx_format = get_format(_FORMAT)
    onnx_format.import_packages()
    images = sample_photographs() if images is None else images
    if not images:
        raise UsageError("images is empty: pass at least one image to verify the export")
    output = Path(output).expanduser()
    with new_folder(output) as folder:
        # 1. Compute what the export must reproduce
        pixels = [load_rgb_array(image, f"images[{i}]") for i, image in enumerate(images)]
        expected = [original(image) for image in pixels]
        if not sum(map(len, expected)):
            raise ExportError(
                f"{name}: detects nothing in the {len(pixels)} images to compare the export on; "
                "use images that show the detector's classes (--images)"
            )

        # 2. Write the folder
        _write_model(model, folder / onnx_format.file_name)
        write_preprocessing(folder, resize_to_dict(resize), classes)

        # 3. Load it again and compare
        exported = open_detector(folder, name)
        runtime = exported.runtime.name
        agreement = compare_detections([exported.boxes(image) for image in pixels], expected)
        _check_agreement(agreement, runtime, name)
        manifest = write_manifest(
            folder,
            network=name,
            format=_FORMAT,
            task=DETECTION,
            input={"name": DETECTOR_INPUT, "type": "uint8", "shape": [None, None, 3]},
            output=_OUTPUT_TENSORS,
            command=command,
            verification=_describe_verification(agreement, len(pixels), runtime),
        )
    return Exported(output, output / onnx_format.file_name, manifest)


def _write_model(model: nn.Module, path: Path) -> None:
    example = torch.zeros(*_EXAMPLE_SIZE, 3, dtype=torch.uint8)
    write_onnx(
        export_program(model, example, list(_AXIS_NAMES)),
        path,
        input_name=DETECTOR_INPUT,
        output_names=DETECTOR_OUTPUTS,
        axis_names=_AXIS_NAMES,
        custom_operators=onnx_translations,
    )


def _describe_verification(agreement: Agreement, num_images: int, runtime: str) -> dict[str, Any]:
    return {
        "images": num_images,
        "detections": agreement.detections,
        "equal": agreement.equal,
        "largest_box_difference": agreement.box_difference,
        "largest_score_difference": agreement.score_difference,
        "tolerance": {"box": BOX_TOLERANCE, "score": SCORE_TOLERANCE, "share": MIN_EQUAL_SHARE},
        "runtime": runtime,
    }


def compare_detections(detections: Sequence[DetectionArrays], expected: Sequence[DetectionArrays]) -> Agreement:
    """Match the detections in each image with the expected ones, each at most once."""
    total = 0
    box_differences: list[float] = []
    score_differences: list[float] = []
    for image_detections, image_expected in zip(detections, expected, strict=True):
        is_unmatched = np.ones(len(image_detections), bool)
        num_matches = 0
        rows = zip(image_expected.boxes, image_expected.scores, image_expected.classes, strict=True)
        for box, score, class_index in rows:
            # Match the nearest detection of the same class within the tolerances that is not matched yet
            box_errors = np.abs(image_detections.boxes - box).max(axis=1, initial=0)
            score_errors = np.abs(image_detections.scores - score)
            matches = is_unmatched & (image_detections.classes == class_index)
            matches &= (box_errors <= BOX_TOLERANCE) & (score_errors <= SCORE_TOLERANCE)
            if matches.any():
                nearest = np.where(matches, box_errors, np.inf).argmin()
                is_unmatched[nearest] = False
                box_differences.append(float(box_errors[nearest]))
                score_differences.append(float(score_errors[nearest]))
                num_matches += 1
        # Count a matched pair once
        total += len(image_detections) + len(image_expected) - num_matches
    return Agreement(
        total, len(box_differences), max(box_differences, default=0.0), max(score_differences, default=0.0)
    )


def _check_agreement(agreement: Agreement, runtime: str, name: str) -> None:
    if agreement.equal < MIN_EQUAL_SHARE * agreement.detections:
        raise ExportError(
            f"{name}: {runtime} gives different detections than the original: {agreement.equal} of "
            f"{agreement.detections} are equal, {MIN_EQUAL_SHARE:.0%} are required. Nothing was exported"
        )
