"""Which detections count: classes, and minimum scores by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.structures import Instances

from fbnetv3.detection.inference.video.object_tracker import NO_TRACK, ObjectTracker
from fbnetv3.errors import UsageError, suggest

SHOWN_SCORE = 0.5  # default minimum score of everything but COCO results


@dataclass(frozen=True)
class ScoreThresholds:
    """Minimum scores: for all classes, if there is one, and for some by name."""

    default: float | None = None
    by_class: Mapping[str, float] = field(default_factory=dict)

    def for_detector(self, threshold: float, keep_low: bool = False) -> float:
        """Return the minimum score that a detector needs, whose own is `threshold`.

        With `keep_low`, for a tracker, it is not raised.
        """
        lowest = min([threshold if self.default is None else self.default, *self.by_class.values()])
        return min(lowest, threshold) if keep_low else lowest


def parse_score_thresholds(words: Sequence[str]) -> ScoreThresholds:
    """Parse "0.5" and "person=0.7", in any order.

    Raises:
        UsageError: a word is neither, a score is not in [0, 1], or one is stated twice.
    """
    default = None
    by_class: dict[str, float] = {}
    for word in words:
        name, separator, number = word.rpartition("=")
        score = _parse_score(number, word)
        if not separator and default is None:
            default = score
        elif separator and name and name not in by_class:
            by_class[name] = score
        else:
            raise UsageError(f"--score-threshold {word}: state one score, and one for each CLASS=SCORE")
    return ScoreThresholds(default, by_class)


def _parse_score(text: str, word: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:  # also NaN
        raise UsageError(f"--score-threshold {word}: {text} must be a number in [0, 1]")
    return score


def find_class_indices(requested: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the indices of classes by name; upper and lower case are the same unless names differ only in that.

    Raises:
        UsageError: a name is unknown; the message suggests others.
    """
    indices: list[int] = []
    for name in requested:
        matches = [i for i, class_name in enumerate(names) if class_name == name]
        matches = matches or [
            i for i, class_name in enumerate(names) if class_name.casefold() == name.casefold()
        ]
        if not matches:
            raise UsageError(f"the detector has no class {name!r}: {suggest(name, names)}")
        indices += matches
    return indices


class DetectionSelection:
    """Selects detections by class and score.

    Args:
        names: class names by index.
        thresholds: minimum scores.
        classes: names of the classes that count; None for all.

    Raises:
        UsageError: a class name is unknown.
    """

    def __init__(
        self,
        names: Sequence[str],
        thresholds: ScoreThresholds | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        thresholds = thresholds or ScoreThresholds()
        self._is_selected = torch.full((len(names),), classes is None)
        if classes is not None:
            self._is_selected[find_class_indices(classes, names)] = True
        self._min_scores = torch.full((len(names),), thresholds.default or 0.0)
        default = SHOWN_SCORE if thresholds.default is None else thresholds.default
        self._shown_scores = torch.full((len(names),), default)
        for name, score in thresholds.by_class.items():
            indices = find_class_indices([name], names)
            self._min_scores[indices] = self._shown_scores[indices] = score

    def select(
        self, detections: Instances, tracker: ObjectTracker | None = None
    ) -> tuple[Instances, Instances]:
        """Return the detections for COCO results, and those of them to show.

        Without thresholds, results contain everything, as average precision requires, and scores of at least 0.5 are
        shown. With a tracker, detections that continue a track count whatever their score.
        """
        detections = detections[self._is_selected[detections.pred_classes]]
        is_high = detections.scores >= self._shown_scores[detections.pred_classes]
        is_result = detections.scores >= self._min_scores[detections.pred_classes]
        if tracker is not None:
            detections = tracker.update(detections, is_high)
            is_tracked = detections.track_ids != NO_TRACK
            is_high |= is_tracked
            is_result |= is_tracked
        return detections[is_result], detections[is_high]
