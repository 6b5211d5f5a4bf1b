"""Export a detector to ONNX: write it to a temporary folder, compare its detections, and only then keep the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.detector_graph.box_ops import ONNX_TRANSLATIONS
from fbnetv3.deploy.exported_folder import (
    DETECTION,
    ExportedNetwork,
    atomic_folder,
    open_detector,
    write_manifest,
    write_preprocessing,
)
from fbnetv3.deploy.formats.export_format import export_program, get_format
from fbnetv3.deploy.formats.onnx_format import write_onnx
from fbnetv3.deploy.input_images import ImageLike, load_rgb_array, sample_detector_images
from fbnetv3.deploy.predictors.detector_predictor import (
    CLASSES_OUTPUT,
    DETECTOR_INPUT,
    DETECTOR_OUTPUTS,
    DetectionArrays,
    DetectorPredictor,
    ShortSideResize,
    resize_to_dict,
)
from fbnetv3.errors import ExportError
from fbnetv3.utils.files import expand_path

# Largest differences from the original detector: of a box corner, in pixels of the image, and of a score
BOX_TOLERANCE = 0.1
SCORE_TOLERANCE = 1e-4
# Share of the detections that must be equal; NMS ties may resolve differently across runtimes
MIN_EQUAL_SHARE = 0.99
_FORMAT = "onnx"
_AXIS_NAMES = {0: "height", 1: "width"}
_EXAMPLE_SIZE = (352, 480)  # gives every feature map its own size
_INPUT_TENSOR = {"name": DETECTOR_INPUT, "type": "uint8", "shape": [None, None, 3]}
_OUTPUT_TENSORS: list[dict[str, Any]] = [  # as in DETECTOR_OUTPUTS
    {"name": "boxes", "type": "float32", "shape": [None, 4]},
    {"name": "scores", "type": "float32", "shape": [None]},
    {"name": "classes", "type": "int64", "shape": [None]},
]


@dataclass(frozen=True)
class Agreement:
    """How well the export's detections match the original detector's; part of the manifest.

    `detections` counts the distinct detections of both, and `equal` those that both found within the tolerances. The
    largest differences are over these pairs, so they never exceed the tolerances: of a box coordinate in pixels, and
    of a score.
    """

    detections: int
    equal: int
    largest_box_difference: float
    largest_score_difference: float


def export_detector_to_onnx(
    model: nn.Module,
    resize: ShortSideResize,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    original: Callable[[np.ndarray], DetectionArrays],
    images: Sequence[ImageLike] | None = None,
    category_ids: Sequence[int | float | str] = (),
    name: str = "detector",
    command: str = "",
) -> ExportedNetwork:
    """Export a detector into a new folder, which is created only if the export detects what the original detects.

    Args:
        model: maps an image, uint8 (H, W, 3) in RGB, to boxes (N, 4) in its pixels, scores (N,) and class indices (N,),
            with operators that torch.export supports and those of `box_ops`.
        resize: the resizing of images before the network.
        classes: class names.
        output: the folder to create; an existing folder must be empty.
        original: returns the original detector's detections in an image of any size.
        images: images to compare on; default: `sample_detector_images`.
        category_ids: ids of the classes in results files.
        name: name of the detector, for messages and the manifest.
        command: the command that exports the detector, for the manifest.

    Raises:
        MissingPackageError: the packages for ONNX are not installed.
        UsageError: the output folder is not empty.
        DataError: one of `images` is missing, corrupt or not an image.
        ExportError: the detector cannot be exported, the export differs from it, or it detects nothing in the images.
        OutputError: the folder cannot be written.
    """
    onnx_format = get_format(_FORMAT)
    onnx_format.import_packages()
    images = sample_detector_images() if images is None else images
    output = expand_path(output)
    with atomic_folder(output) as folder:
        # 1. Compute what the export must reproduce
        pixels = [load_rgb_array(image, f"images[{i}]") for i, image in enumerate(images)]
        expected = [original(image) for image in pixels]
        if not sum(map(len, expected)):
            raise ExportError(
                f"{name}: detects nothing in the {len(pixels)} images to compare the export on; "
                "use images that show the detector's classes (--images)"
            )
        # 2. Write the folder
        example = torch.zeros(*_EXAMPLE_SIZE, 3, dtype=torch.uint8)
        write_onnx(
            export_program(model, example, list(_AXIS_NAMES)),
            folder / onnx_format.file_name,
            input_name=DETECTOR_INPUT,
            output_names=DETECTOR_OUTPUTS,
            axis_names=_AXIS_NAMES,
            custom_operators=ONNX_TRANSLATIONS,
        )
        write_preprocessing(folder, resize_to_dict(resize), classes)
        # 3. Load it again and compare
        predictor = open_detector(folder, name)
        verification = _verify(predictor, pixels, expected)
        manifest = write_manifest(
            folder,
            network=name,
            format=_FORMAT,
            task=DETECTION,
            input=_INPUT_TENSOR,
            output=[_describe_tensor(tensor, category_ids) for tensor in _OUTPUT_TENSORS],
            command=command,
            verification=verification,
        )
    return ExportedNetwork(output, output / onnx_format.file_name, manifest)


def _describe_tensor(tensor: dict[str, Any], category_ids: Sequence[int | float | str]) -> dict[str, Any]:
    """Return the manifest's entry of an output; that of the class indices has their category ids."""
    is_classes = tensor["name"] == CLASSES_OUTPUT
    return {**tensor, "category_ids": list(category_ids)} if category_ids and is_classes else tensor


def _verify(
    predictor: DetectorPredictor, images: Sequence[np.ndarray], expected: Sequence[DetectionArrays]
) -> dict[str, Any]:
    """Compare the export's detections with the expected ones; return the manifest's "verification"."""
    agreement = compare_detections([predictor.detect(image) for image in images], expected)
    runtime = predictor.runtime.name
    if agreement.equal < MIN_EQUAL_SHARE * agreement.detections:
        raise ExportError(
            f"{predictor.name}: {runtime} gives different detections than the original: {agreement.equal} of "
            f"{agreement.detections} are equal, but {MIN_EQUAL_SHARE:.0%} are required. Nothing was exported"
        )
    return {
        "images": len(images),
        **asdict(agreement),
        "tolerance": {"box": BOX_TOLERANCE, "score": SCORE_TOLERANCE, "share": MIN_EQUAL_SHARE},
        "runtime": runtime,
    }


def compare_detections(
    detections: Sequence[DetectionArrays], expected: Sequence[DetectionArrays]
) -> Agreement:
    """Match the detections in each image with the expected ones, each at most once."""
    total = 0
    box_differences: list[float] = []
    score_differences: list[float] = []
    for image_detections, image_expected in zip(detections, expected, strict=True):
        is_unmatched = np.ones(len(image_detections), bool)
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
        # Count a matched pair once
        total += len(image_expected) + int(is_unmatched.sum())
    box_difference = max(box_differences, default=0.0)
    score_difference = max(score_differences, default=0.0)
    return Agreement(total, len(box_differences), box_difference, score_difference)
