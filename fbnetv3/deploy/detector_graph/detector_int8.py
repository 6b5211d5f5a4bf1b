"""Quantize an exported detector to int8, and compare its detections with those of float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.input_images import ImageLike, load_rgb_array
from fbnetv3.deploy.int8.comparison_images import (
    agreement_bound,
    select_images,
    warn_if_few_calibration_images,
    warn_if_few_comparison_images,
)
from fbnetv3.deploy.predictors.detector_predictor import (
    DETECTOR_INPUT,
    DetectionArrays,
    DetectorPredictor,
)
from fbnetv3.errors import ExportError, UsageError

CONFIDENT = 0.5  # minimum score of the detections that both networks should have
_SAME_OBJECT = 0.5  # minimum IoU of two detections of the same object
_DEFAULT_MIN_AGREEMENT = 90.0  # percent, without annotations

AveragePrecision = Callable[[DetectorPredictor, str], float]


@dataclass(frozen=True)
class DetectorInt8Settings:
    """How to quantize a detector and how to judge the result.

    Attributes:
        calibration: 50 to a few hundred images, on which the range of each feature map is measured.
        images: other images, on which the detections of int8 are compared with those of float32.
        average_precision: computes AP in percent on annotated images, of a predictor whose precision, "float32" or
            "int8", is the second argument, for messages; None without annotations.
        max_drop: maximum drop in AP, in percentage points.
        min_agreement: minimum agreement in percent, see `agreement`; default: 90 without AP, no limit with AP.
        reduce_range: whether to use 7-bit weights: on x86 without VNNI, sums of two 8-bit products may saturate.
    """

    calibration: Sequence[ImageLike]
    images: Sequence[ImageLike]
    average_precision: AveragePrecision | None = None
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not self.calibration or not self.images:
            raise UsageError("int8 needs images to calibrate on, and others to compare on")

    @property
    def required_agreement(self) -> float:
        """`min_agreement` or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        return _DEFAULT_MIN_AGREEMENT if self.average_precision is None else 0.0

    def describe_violation(self, comparison: dict[str, Any]) -> str:
        """Describe which limit a comparison exceeds; return an empty text if none."""
        if self.average_precision is not None:
            before, after = comparison["ap_float32"], comparison["ap_int8"]
            if not before - after <= self.max_drop:
                return f"reduces AP from {before:.2f} to {after:.2f}; the limit is a loss of {self.max_drop:g} points"
        share = comparison["agreement"]
        if share < self.required_agreement:
            return f"agrees with float32 on {share:.1f}% of the objects; {self.required_agreement:g}% are required"
        return ""


def quantize_detector_file(
    path: Path, predictor: DetectorPredictor, int8: DetectorInt8Settings
) -> dict[str, Any]:
    """Replace a detector's ONNX file with its int8 version, and return the comparison, for the manifest.

    `predictor` runs the float32 file.

    Raises:
        ExportError: int8 exceeds a limit of the settings, or float32 has no confident detection to compare.
        DataError: too many images are corrupt.
    """
    from fbnetv3.deploy.formats.onnx_quantization import quantize_onnx

    selection = select_images(int8.calibration, int8.images, load_rgb_array)
    calibration = [int8.calibration[index] for index in selection.calibration]
    int8 = replace(
        int8, calibration=calibration, images=[int8.images[index] for index in selection.comparison]
    )
    warn_if_few_calibration_images(len(calibration))
    # Run float32 before its file is replaced
    pixels = [load_rgb_array(image, f"images[{i}]") for i, image in enumerate(int8.images)]
    expected = [predictor.detect(image) for image in pixels]
    if not any((arrays.scores >= CONFIDENT).any() for arrays in expected):
        raise ExportError(
            f"{predictor.name}: detects nothing with a score of at least {CONFIDENT} in the {len(pixels)} images to "
            "compare int8 on; use images that show the detector's classes"
        )
    sizes = {"bytes_float32": path.stat().st_size}
    precision = {}
    if int8.average_precision is not None:
        precision["ap_float32"] = int8.average_precision(predictor, "float32")
    quantize_onnx(path, _batches(predictor, int8.calibration), int8.reduce_range, input_name=DETECTOR_INPUT)
    quantized = replace(predictor, runtime=OnnxRuntime(path))
    sizes["bytes_int8"] = path.stat().st_size
    if int8.average_precision is not None:
        precision["ap_int8"] = int8.average_precision(quantized, "int8")
    detections = [quantized.detect(image) for image in pixels]
    share = agreement(expected, detections)
    num_objects = len(find_same_objects(expected, detections))
    bound = agreement_bound(share, num_objects)
    warn_if_few_comparison_images("int8", len(pixels), share, bound)
    comparison = {
        "agreement": share,
        "agreement_lower_bound": bound,
        **precision,
        "images": len(pixels),
        "objects": num_objects,
        **selection.counts,
        "calibration_images": len(calibration),
        **sizes,
        "max_drop": int8.max_drop,
        "min_agreement": int8.required_agreement,
    }
    if violation := int8.describe_violation(comparison):
        raise ExportError(
            f"{predictor.name}: int8 {violation}. Nothing was exported; try other calibration images"
        )
    return comparison


def _batches(predictor: DetectorPredictor, images: Sequence[ImageLike]) -> Iterator[np.ndarray]:
    """Yield each image as the network's input, uint8 (1, H, W, 3)."""
    for i, image in enumerate(images):
        yield predictor.resize(load_rgb_array(image, f"calibration[{i}]"))[None]


def find_same_objects(first: Sequence[DetectionArrays], second: Sequence[DetectionArrays]) -> list[bool]:
    """Return for each confident detection of two detectors whether the other detector has it, too.

    A detection is confident if its score is at least 0.5. The other detector has it if one of its detections, with any
    score, has the same class and an IoU of at least 0.5.
    """
    has_match: list[bool] = []
    for a, b in zip(first, second, strict=True):
        iou = pairwise_iou(a.boxes, b.boxes)
        is_same = (iou >= _SAME_OBJECT) & (a.classes[:, None] == b.classes)
        has_match += [*is_same.any(1)[a.scores >= CONFIDENT], *is_same.any(0)[b.scores >= CONFIDENT]]
    return has_match


def agreement(first: Sequence[DetectionArrays], second: Sequence[DetectionArrays]) -> float:
    """Return the percentage of `find_same_objects`; 100 without confident detections."""
    has_match = find_same_objects(first, second)
    return 100 * float(np.mean(has_match)) if has_match else 100.0


def pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4), as x0, y0, x1, y1."""
    top_left = np.maximum(first[:, None, :2], second[:, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[:, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - intersection
    return intersection / np.maximum(union, np.finfo(np.float32).tiny)
