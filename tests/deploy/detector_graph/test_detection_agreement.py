"""An export agrees with its original if boxes, scores, masks and keypoints are equal within tolerances."""

import numpy as np
import pytest

from fbnetv3.deploy.detector_graph.detection_agreement import compare_detections
from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays, with_mask_runs
from fbnetv3.deploy.predictors.instance_maps import encode_mask_runs, mask_iou


def test_each_detection_is_matched_once():
    box = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 20, 20]])
    score = np.float32([0.9, 0.9, 0.5])
    classes = np.array([1, 1, 2])
    every = DetectionArrays(box, score, classes)
    assert compare_detections([every], [every]).equal == 3
    twice = compare_detections(
        [DetectionArrays(box[:1], score[:1], classes[:1])],
        [DetectionArrays(box[:2], score[:2], classes[:2])],
    )
    assert (twice.equal, twice.detections) == (1, 2)
    for other in (
        DetectionArrays(box + 0.11, score, classes),
        DetectionArrays(box, score + 2e-4, classes),
        DetectionArrays(box, score, classes + 1),
    ):
        assert (
            compare_detections([other], [every]).equal < 3
            and compare_detections([other], [every]).detections > 3
        )


def test_mask_iou():
    """Rows 0 to 4 and rows 3 to 5 of six: two of six rows in common."""
    masks = np.zeros((4, 6, 7), bool)
    masks[0, :5], masks[1, 3:] = True, True
    first, second, empty, _ = encode_mask_runs(masks)
    assert mask_iou(first, second) == pytest.approx(2 / 6)
    assert (mask_iou(first, first), mask_iou(first, empty), mask_iou(empty, empty)) == (1, 0, 1)


def test_mask_iou_equals_that_of_random_pixels():
    masks = np.random.default_rng(0).random((2, 9, 13)) < 0.5
    expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert mask_iou(*encode_mask_runs(masks)) == pytest.approx(expected)


def detections(side=10, point=(3.0, 4.0), count=20):
    """Return equal detections with a mask over the first `side` columns of an image, and a keypoint."""
    masks = np.zeros((count, 12, 12), bool)
    masks[:, :, :side] = True
    return DetectionArrays(
        np.tile(np.float32([1, 1, 11, 11]), (count, 1)) + np.arange(count)[:, None],
        np.full(count, 0.9, np.float32),
        np.zeros(count, int),
        keypoints=np.tile(np.float32([*point, 0.5]), (count, 1, 1)),
        mask_runs=encode_mask_runs(masks),
    )


def test_masks_and_keypoints_of_equal_detections_are_compared():
    agreement = compare_detections([detections(9, (3.03, 4.04))], [detections()])
    assert (agreement.equal, agreement.masks, agreement.equal_masks) == (20, 20, 0)
    assert agreement.mean_mask_iou == pytest.approx(0.9)
    assert (agreement.keypoints, agreement.equal_keypoints) == (20, 20)
    assert agreement.largest_keypoint_distance == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"side": 9}, "gives different masks than the original: 0 of 20 are equal, but 99% are required"),
        ({"point": (3.0, 4.2)}, "gives different keypoints than the original: 0 of 20 are equal, but 95%"),
    ],
)
def test_different_masks_and_keypoints_are_violations(changed, message):
    violation = compare_detections([detections(**changed)], [detections()]).describe_violation()
    assert violation.startswith(message) and bool(violation) == bool(message)


def test_a_detector_without_such_heads_has_nothing_to_compare():
    plain = DetectionArrays(np.float32([[0, 0, 5, 5]]), np.float32([0.9]), np.array([0]))
    agreement = compare_detections([plain], [plain])
    assert (agreement.masks, agreement.keypoints, agreement.describe_violation()) == (None, None, "")


def test_probabilities_become_masks_of_the_image():
    """A map of 2 x 2 over a box of 4 x 4 pixels, of which the left half is inside."""
    plain = DetectionArrays(np.float32([[2, 1, 6, 5]]), np.float32([0.9]), np.array([0]))
    probabilities = np.float32([[[1, 0], [1, 0]]])
    arrays = DetectionArrays(plain.boxes, plain.scores, plain.classes, probabilities)
    expected = np.zeros((1, 8, 9), bool)
    expected[0, 1:5, 2:4] = True
    (runs,) = with_mask_runs(arrays, 8, 9).mask_runs
    assert mask_iou(runs, encode_mask_runs(expected)[0]) == 1
    assert with_mask_runs(plain, 8, 9).mask_runs is None
