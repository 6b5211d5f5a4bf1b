"""Compare the detections of an exported detector with the original's: boxes, scores, masks and keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays
from fbnetv3.deploy.predictors.instance_maps import mask_iou

# Largest differences from the original detector: of a box corner or a keypoint, in pixels of the image, and of a score
BOX_TOLERANCE = 0.1
KEYPOINT_TOLERANCE = 0.1
SCORE_TOLERANCE = 1e-4
# Smallest IoU of two masks; a pixel on the border may have a probability of 0.5 up to rounding
MASK_TOLERANCE = 0.95
# Share of the detections that must be equal; NMS ties may resolve differently across runtimes
MIN_EQUAL_SHARE = 0.99
# Share of the keypoints: the maximum of a flat heatmap may be anywhere
MIN_EQUAL_KEYPOINT_SHARE = 0.95


@dataclass(frozen=True)
class Agreement:
    """How well the export's detections match the original detector's; part of the manifest.

    `detections` counts the distinct detections of both, and `equal` those that both found within the tolerances of
    boxes and scores. All other values are over these pairs. The largest differences never exceed the tolerances: of a
    box coordinate in pixels, and of a score. `masks` and `keypoints` count what the pairs have; they and what follows
    them are None if the detector has no such head.
    """

    detections: int
    equal: int
    largest_box_difference: float
    largest_score_difference: float
    masks: int | None = None
    equal_masks: int | None = None
    mean_mask_iou: float | None = None
    keypoints: int | None = None
    equal_keypoints: int | None = None
    largest_keypoint_distance: float | None = None  # of equal keypoints, in pixels

    def describe_violation(self) -> str:
        """Describe what too small a share is equal of; return an empty text if nothing."""
        shares = [
            ("detections", self.equal, self.detections, MIN_EQUAL_SHARE),
            ("masks", self.equal_masks, self.masks, MIN_EQUAL_SHARE),
            ("keypoints", self.equal_keypoints, self.keypoints, MIN_EQUAL_KEYPOINT_SHARE),
        ]
        for noun, equal, total, share in shares:
            if total and equal is not None and equal < share * total:
                counts = f"{equal} of {total} are equal, but {share:.0%} are required"
                return f"gives different {noun} than the original: {counts}"
        return ""


def tolerances() -> dict[str, float]:
    """Return the tolerances, for the manifest."""
    return {
        "box": BOX_TOLERANCE,
        "score": SCORE_TOLERANCE,
        "share": MIN_EQUAL_SHARE,
        "mask_iou": MASK_TOLERANCE,
        "keypoint": KEYPOINT_TOLERANCE,
        "keypoint_share": MIN_EQUAL_KEYPOINT_SHARE,
    }


def compare_detections(
    detections: Sequence[DetectionArrays], expected: Sequence[DetectionArrays]
) -> Agreement:
    """Match the detections in each image with the expected ones, each at most once.

    Masks are compared if both have `mask_runs`, and keypoints if both have them.
    """
    total = 0
    pairs = _PairDifferences()
    for image_detections, image_expected in zip(detections, expected, strict=True):
        is_unmatched = np.ones(len(image_detections), bool)
        rows = zip(image_expected.boxes, image_expected.scores, image_expected.classes, strict=True)
        for row, (box, score, class_index) in enumerate(rows):
            # Match the nearest detection of the same class within the tolerances that is not matched yet
            box_errors = np.abs(image_detections.boxes - box).max(axis=1, initial=0)
            score_errors = np.abs(image_detections.scores - score)
            matches = is_unmatched & (image_detections.classes == class_index)
            matches &= (box_errors <= BOX_TOLERANCE) & (score_errors <= SCORE_TOLERANCE)
            if matches.any():
                nearest = int(np.where(matches, box_errors, np.inf).argmin())
                is_unmatched[nearest] = False
                pairs.boxes.append(float(box_errors[nearest]))
                pairs.scores.append(float(score_errors[nearest]))
                pairs.add_maps(image_detections, nearest, image_expected, row)
        # Count a matched pair once
        total += len(image_expected) + int(is_unmatched.sum())
    return pairs.summarize(total)


@dataclass
class _PairDifferences:
    """The differences between matched detections."""

    boxes: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    mask_ious: list[float] = field(default_factory=list)
    keypoint_distances: list[float] = field(default_factory=list)

    def add_maps(
        self, detections: DetectionArrays, row: int, expected: DetectionArrays, expected_row: int
    ) -> None:
        """Compare masks and keypoints of a pair, as far as both have them."""
        if detections.mask_runs is not None and expected.mask_runs is not None:
            iou = mask_iou(detections.mask_runs[row], expected.mask_runs[expected_row])
            self.mask_ious.append(iou)
        if detections.keypoints is not None and expected.keypoints is not None:
            difference = detections.keypoints[row] - expected.keypoints[expected_row]
            self.keypoint_distances += np.hypot(difference[:, 0], difference[:, 1]).tolist()

    def summarize(self, total: int) -> Agreement:
        """Return the agreement, for a number of distinct detections."""
        maps: dict[str, Any] = {}
        if self.mask_ious:
            equal_masks = sum(iou >= MASK_TOLERANCE for iou in self.mask_ious)
            mean_iou = float(np.mean(self.mask_ious))
            maps |= {"masks": len(self.mask_ious), "equal_masks": equal_masks, "mean_mask_iou": mean_iou}
        if self.keypoint_distances:
            near = [distance for distance in self.keypoint_distances if distance <= KEYPOINT_TOLERANCE]
            maps |= {"keypoints": len(self.keypoint_distances), "equal_keypoints": len(near)}
            maps["largest_keypoint_distance"] = max(near, default=0.0)
        box_difference, score_difference = (
            max(values, default=0.0) for values in (self.boxes, self.scores)
        )
        return Agreement(total, len(self.boxes), box_difference, score_difference, **maps)
