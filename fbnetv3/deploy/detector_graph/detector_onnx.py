"""Export a detector by ONNX: write it to a temporary folder, compare its detections, and only then keep the folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.deploy.detector_graph.box_ops import ONNX_TRANSLATIONS
from fbnetv3.deploy.detector_graph.detection_agreement import compare_detections, tolerances
from fbnetv3.deploy.detector_graph.detector_int8 import DetectorPrecisionSettings, reduce_detector_precision
from fbnetv3.deploy.exported_folder import (
    DETECTION,
    ExportedNetwork,
    atomic_folder,
    open_detector,
    write_manifest,
    write_preprocessing,
)
from fbnetv3.deploy.formats.export_format import FLOAT32, export_program, get_format
from fbnetv3.deploy.formats.onnx_format import write_onnx
from fbnetv3.deploy.input_images import ImageLike, load_rgb_array, sample_detector_images
from fbnetv3.deploy.predictors.detector_predictor import (
    CLASSES_OUTPUT,
    DETECTOR_INPUT,
    DETECTOR_OUTPUTS,
    HEATMAPS,
    SCORES_OUTPUT,
    DetectionArrays,
    DetectorPredictor,
    ShortSideResize,
    resize_to_dict,
    with_mask_runs,
)
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.utils.files import expand_path

DETECTOR_FORMATS = ("onnx", "openvino", "web")
"""Formats that detectors can be exported to."""
_AXIS_NAMES = {0: "batch", 1: "height", 2: "width"}
_EXAMPLE_SHAPE = (2, 352, 480, 3)  # gives every feature map its own size
_INPUT_TENSOR = {"name": DETECTOR_INPUT, "type": "uint8", "shape": [None, None, None, 3]}


def export_detector_to_onnx(
    model: nn.Module,
    resize: ShortSideResize,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    original: Callable[[np.ndarray], DetectionArrays],
    images: Sequence[ImageLike] | None = None,
    category_ids: Sequence[int | float | str] = (),
    output_names: Sequence[str] = DETECTOR_OUTPUTS,
    score_threshold: float = 0.0,
    skeleton: KeypointSkeleton | None = None,
    format: str = "onnx",
    precision: DetectorPrecisionSettings | None = None,
    name: str = "detector",
    command: str = "",
) -> ExportedNetwork:
    """Export a detector into a new folder, which is created only if the export detects what the original detects.

    Args:
        model: maps images, uint8 (N, H, W, 3) in RGB, to `output_names`, a row per detection: boxes (K, 4) in pixels
            of the image, scores (K,), class and image indices (K,), and the maps of other heads; with operators that
            torch.export supports and those of `box_ops`.
        resize: the resizing of images before the network.
        classes: class names.
        output: the folder to create; an existing folder must be empty.
        original: returns the original detector's detections in an image of any size; masks as `mask_runs`.
        images: images to compare on; default: `sample_detector_images`.
        category_ids: ids of the classes in results files.
        output_names: `DETECTOR_OUTPUTS`, then `MASKS` and `HEATMAPS` as far as the model returns them.
        score_threshold: minimum score of the detections that the model returns.
        skeleton: the keypoints of the heatmaps.
        format: one of `DETECTOR_FORMATS`.
        precision: lower precision than float32 to reduce the verified export to; each format offers some.
        name: name of the detector, for messages and the manifest.
        command: the command that exports the detector, for the manifest.

    Raises:
        MissingPackageError: the format's packages are not installed.
        UsageError: the format is not one of these or lacks the precision, or the output folder is not empty.
        DataError: one of `images` is missing, corrupt or not an image.
        ExportError: the detector cannot be exported, the export differs from it, it detects nothing in the images, or
            the lower precision exceeds a limit.
        OutputError: the folder cannot be written.
    """
    if format not in DETECTOR_FORMATS:
        raise UsageError(f"format {format} for a detector must be one of {', '.join(DETECTOR_FORMATS)}")
    export_format = get_format(format)
    if precision is not None and precision.precision not in export_format.precisions:
        raise UsageError(
            f"{format} offers {', '.join(export_format.precisions)}, not {precision.precision}"
        )
    export_format.import_packages()
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
        example = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8)
        program = export_program(model, example, list(_AXIS_NAMES))
        path = folder / export_format.file_name
        with tempfile.TemporaryDirectory() as temporary:
            onnx_path = Path(temporary) / "model.onnx"
            write_onnx(
                program,
                onnx_path,
                input_name=DETECTOR_INPUT,
                output_names=output_names,
                axis_names=_AXIS_NAMES,
                custom_operators=ONNX_TRANSLATIONS,
            )
            export_format.write_from_onnx(onnx_path, path)
        write_preprocessing(folder, resize_to_dict(resize), classes)
        # 3. Load it again and compare
        predictor = open_detector(folder, name, output_names, partial(export_format.open, path))
        verification = _verify(predictor, pixels, expected)
        if precision is not None:
            verification[precision.precision] = reduce_detector_precision(
                program, path, export_format, predictor, precision
            )
        export_format.add_files(folder)
        manifest = write_manifest(
            folder,
            network=name,
            format=format,
            task=DETECTION,
            precision=precision.precision if precision else FLOAT32,
            input=_INPUT_TENSOR,
            output=_describe_outputs(predictor, category_ids, score_threshold, skeleton),
            command=command,
            verification=verification,
        )
    return ExportedNetwork(output, output / export_format.file_name, manifest)


def _describe_outputs(
    predictor: DetectorPredictor,
    category_ids: Sequence[int | float | str],
    score_threshold: float,
    skeleton: KeypointSkeleton | None,
) -> list[dict[str, Any]]:
    """Return the manifest's entries of the outputs, with what `fbnetv3.deploy.load` needs to know about them."""
    details: dict[str, dict[str, Any]] = {
        SCORES_OUTPUT: {"threshold": score_threshold} if score_threshold else {},
        CLASSES_OUTPUT: {"category_ids": list(category_ids)} if category_ids else {},
        HEATMAPS: {"keypoints": skeleton.to_dict()} if skeleton else {},
    }
    return [
        {**output, **details.get(output["name"], {})} for output in predictor.runtime.describe_outputs()
    ]


def _verify(
    predictor: DetectorPredictor, images: Sequence[np.ndarray], expected: Sequence[DetectionArrays]
) -> dict[str, Any]:
    """Compare the export's detections with the expected ones; return the manifest's "verification"."""
    detections = [with_mask_runs(predictor.detect(image), *image.shape[:2]) for image in images]
    agreement = compare_detections(detections, expected)
    runtime = predictor.runtime.name
    if violation := agreement.describe_violation():
        raise ExportError(f"{predictor.name}: {runtime} {violation}. Nothing was exported")
    return {
        "images": len(images),
        **{key: value for key, value in asdict(agreement).items() if value is not None},
        "tolerance": tolerances(),
        "runtime": runtime,
    }
