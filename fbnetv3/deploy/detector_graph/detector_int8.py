"""Reduce the precision of an exported detector, and compare its detections with those of float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, INT8, PRECISIONS, ExportFormat
from fbnetv3.deploy.input_images import ImageLike, load_rgb_array
from fbnetv3.deploy.int8.comparison_images import (
    agreement_bound,
    select_images,
    warn_if_few_calibration_images,
    warn_if_few_comparison_images,
)
from fbnetv3.deploy.predictors.detector_predictor import (
    DetectionArrays,
    DetectorPredictor,
    DetectorRuntime,
)
from fbnetv3.errors import ExportError, UsageError

CONFIDENT = 0.5  # minimum score of the detections that both networks should have
_SAME_OBJECT = 0.5  # minimum IoU of two detections of the same object
_DEFAULT_MIN_AGREEMENT = 90.0  # percent, without annotations

AveragePrecision = Callable[[DetectorPredictor, str], float]


@dataclass(frozen=True)
class DetectorPrecisionSettings:
    """To which precision a detector is reduced, and how to judge the result.

    Attributes:
        precision: "int8" or "bfloat16"; each format offers some of them.
        images: images on which the detections are compared with those of float32.
        calibration: for int8, 50 to a few hundred other images, on which the range of each feature map is measured.
        average_precision: computes AP in percent on annotated images, of a predictor whose precision, such as
            "float32", is the second argument, for messages; None without annotations.
        max_drop: maximum drop in AP, in percentage points.
        min_agreement: minimum agreement in percent, see `agreement`; default: 90 without AP, no limit with AP.
        reduce_range: whether to use 7-bit weights, only with int8: on x86 without VNNI, sums of two 8-bit products may
            saturate.
    """

    precision: str
    images: Sequence[ImageLike]
    calibration: Sequence[ImageLike] = ()
    average_precision: AveragePrecision | None = None
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        reduced = [precision for precision in PRECISIONS if precision != FLOAT32]
        if self.precision not in reduced:
            raise UsageError(f"precision {self.precision!r} must be one of {', '.join(reduced)}")
        if self.precision == INT8 and not self.calibration:
            raise UsageError("int8 needs images to calibrate on, and others to compare on")
        if not self.images:
            raise UsageError(f"{self.precision} needs images to compare on")

    @property
    def required_agreement(self) -> float:
        """`min_agreement` or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        return _DEFAULT_MIN_AGREEMENT if self.average_precision is None else 0.0

    def describe_violation(self, comparison: dict[str, Any]) -> str:
        """Describe which limit a comparison exceeds; return an empty text if none."""
        if self.average_precision is not None:
            before, after = comparison["ap_float32"], comparison[f"ap_{self.precision}"]
            if not before - after <= self.max_drop:
                return f"reduces AP from {before:.2f} to {after:.2f}; the limit is a loss of {self.max_drop:g} points"
        share = comparison["agreement"]
        if share < self.required_agreement:
            return f"agrees with float32 on {share:.1f}% of the objects; {self.required_agreement:g}% are required"
        return ""


def reduce_detector_precision(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    predictor: DetectorPredictor,
    settings: DetectorPrecisionSettings,
) -> dict[str, Any]:
    """Replace a detector's file with one of a lower precision, and return the comparison, for the manifest.

    `predictor` runs the float32 file.

    Raises:
        ExportError: the result exceeds a limit of the settings, or float32 has no confident detection to compare.
        DataError: too many images are corrupt.
    """
    precision = settings.precision
    selection = select_images(settings.calibration, settings.images, load_rgb_array)
    calibration = [settings.calibration[index] for index in selection.calibration]
    settings = replace(
        settings,
        calibration=calibration,
        images=[settings.images[index] for index in selection.comparison],
    )
    if precision == INT8:
        warn_if_few_calibration_images(len(calibration))
    # Run float32 before its file is replaced
    pixels = [load_rgb_array(image, f"images[{i}]") for i, image in enumerate(settings.images)]
    expected = [predictor.detect(image) for image in pixels]
    if not any((arrays.scores >= CONFIDENT).any() for arrays in expected):
        raise ExportError(
            f"{predictor.name}: detects nothing with a score of at least {CONFIDENT} in the {len(pixels)} images to "
            f"compare {precision} on; use images that show the detector's classes"
        )
    float32_bytes = export_format.model_bytes(path)
    average_precisions = {}
    if settings.average_precision is not None:
        average_precisions["ap_float32"] = settings.average_precision(predictor, FLOAT32)
    batches = _batches(predictor, settings.calibration)
    export_format.reduce_precision(program, path, precision, batches, settings.reduce_range)
    reduced = replace(predictor, runtime=cast("DetectorRuntime", export_format.open(path, precision)))
    if settings.average_precision is not None:
        average_precisions[f"ap_{precision}"] = settings.average_precision(reduced, precision)
    detections = [reduced.detect(image) for image in pixels]
    share = agreement(expected, detections)
    num_objects = len(find_same_objects(expected, detections))
    bound = agreement_bound(share, num_objects)
    warn_if_few_comparison_images(precision, len(pixels), share, bound)
    comparison = {
        "agreement": share,
        "agreement_lower_bound": bound,
        **average_precisions,
        "images": len(pixels),
        "objects": num_objects,
        **selection.counts,
        **({"calibration_images": len(calibration)} if precision == INT8 else {}),
        "bytes_float32": float32_bytes,
        f"bytes_{precision}": export_format.model_bytes(path),
        "max_drop": settings.max_drop,
        "min_agreement": settings.required_agreement,
    }
    if violation := settings.describe_violation(comparison):
        advice = "; try other calibration images" if precision == INT8 else ""
        raise ExportError(f"{predictor.name}: {precision} {violation}. Nothing was exported{advice}")
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
