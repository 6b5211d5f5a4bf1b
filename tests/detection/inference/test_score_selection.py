"""Classes and scores of the detections that count."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from fbnetv3.detection.inference.score_selection import (
    DetectionSelection,
    ScoreThresholds,
    find_class_indices,
    parse_score_thresholds,
)
from fbnetv3.errors import UsageError

NAMES = ("person", "cat", "dog")


def detections(*objects):
    """Return detections from (class, score)."""
    instances = Instances((10, 10))
    instances.pred_boxes = Boxes(torch.zeros(len(objects), 4))
    instances.pred_classes = torch.tensor([NAMES.index(name) for name, _ in objects])
    instances.scores = torch.tensor([score for _, score in objects])
    return instances


def selected(words, classes=None):
    """Return the scores of the results, and of what is shown, by class."""
    selection = DetectionSelection(NAMES, parse_score_thresholds(words), classes)
    objects = [(name, score) for name in NAMES for score in (0.8, 0.6, 0.4, 0.1)]
    parts = selection.select(detections(*objects))
    return tuple(
        {
            name: [round(s, 2) for s in part.scores[part.pred_classes == index].tolist()]
            for index, name in enumerate(NAMES)
        }
        for part in parts
    )


def every_class(scores):
    return {name: scores for name in NAMES}  # noqa: C420 (the lists are only compared)


ALL = [0.8, 0.6, 0.4, 0.1]


def test_by_default_results_have_everything_and_scores_from_one_half_are_shown():
    assert selected([]) == (every_class(ALL), every_class([0.8, 0.6]))


def test_a_threshold_counts_for_results_too():
    assert selected(["0.3"]) == (every_class([0.8, 0.6, 0.4]),) * 2


def test_thresholds_by_class():
    expected = {"person": [0.8], "cat": [0.8, 0.6, 0.4, 0.1], "dog": [0.8, 0.6]}
    assert selected(["person=0.7", "0.5", "cat=0"]) == (expected, expected)
    results, shown = selected(["person=0.7"])
    assert results == {"person": [0.8], "cat": ALL, "dog": ALL}
    assert shown == {"person": [0.8], "cat": [0.8, 0.6], "dog": [0.8, 0.6]}


def test_classes():
    assert selected([], ["Dog", "cat"])[1] == {"person": [], "cat": [0.8, 0.6], "dog": [0.8, 0.6]}
    assert find_class_indices(["A"], ["a", "A", "b"]) == [1]
    assert find_class_indices(["x"], ["x", "b", "x"]) == [0, 2]  # names may be equal
    with pytest.raises(UsageError, match="the detector has no class 'dogg': did you mean dog?"):
        selected([], ["dogg"])
    with pytest.raises(UsageError, match="no class 'zebra': available: cat, dog, person"):
        selected(["zebra=0.5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2"], "--score-threshold 2: 2 must be a number in [0, 1]"),
        (["nan"], "--score-threshold nan: nan must be a number in [0, 1]"),
        (["cat=x"], "--score-threshold cat=x: x must be a number in [0, 1]"),
        (["0.5", "0.6"], "--score-threshold 0.6: state one score"),
        (["cat=0.5", "cat=0.6"], "--score-threshold cat=0.6: state one score, and one for each"),
        (["=0.6"], "--score-threshold =0.6: state one score"),
    ],
)
def test_invalid_thresholds(words, message):
    with pytest.raises(UsageError) as error:
        parse_score_thresholds(words)
    assert message in str(error.value)


def test_the_detector_finds_what_may_count():
    """Its own threshold here is 0.05. A tracker also needs detections with low scores."""
    for words, threshold, with_tracker in (
        ([], 0.05, 0.05),
        (["0.5"], 0.5, 0.05),
        (["0.01"], 0.01, 0.01),
        (["0.5", "cat=0.2"], 0.2, 0.05),
        (["cat=0.2"], 0.05, 0.05),
        (["cat=0.01"], 0.01, 0.01),
    ):
        thresholds = parse_score_thresholds(words)
        assert thresholds.for_detector(0.05) == threshold
        assert thresholds.for_detector(0.05, keep_low=True) == with_tracker
    assert ScoreThresholds().default is None
