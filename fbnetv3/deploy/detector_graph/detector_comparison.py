"""Compare the detections of an exported detector with those of the original, or of another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays

# Largest differences from the original detector: of a box corner, in pixels of the image, and of a score
BOX_TOLERANCE = 0.1
SCORE_TOLERANCE = 1e-4
# Share of the detections that must be equal; NMS ties may resolve differently across runtimes
MIN_EQUAL_SHARE = 0.99


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
