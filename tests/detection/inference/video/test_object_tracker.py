"""Tracks of objects through the frames of a video."""

import sys

import pytest
import torch
from detectron2.structures import Boxes, Instances

from fbnetv3.detection.inference.video.object_tracker import NO_TRACK, ObjectTracker
from fbnetv3.errors import MissingPackageError


def detections(*objects):
    """Return detections from (x, score, class) of boxes of 20 pixels."""
    instances = Instances((100, 400))
    boxes = torch.tensor([[x, 10.0, x + 20, 30.0] for x, *_ in objects]).reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([score for _, score, _ in objects])
    instances.pred_classes = torch.tensor([index for *_, index in objects], dtype=torch.int64)
    return instances


def track(*frames, min_score=0.5):
    """Return the tracks of the objects in each frame, in their order."""
    pytest.importorskip("trackers", reason="pip install trackers")
    tracker = ObjectTracker(fps=10)
    tracks = []
    for objects in frames:
        instances = detections(*objects)
        tracked = tracker.update(instances, instances.scores >= min_score)
        assert torch.equal(tracked.pred_boxes.tensor, instances.pred_boxes.tensor)
        tracks.append(tracked.track_ids.tolist())
    return tracks


def test_objects_keep_their_tracks():
    """Also if their order changes, and the class of one does."""
    left, right = [(10 + 2 * i, 0.9, 0) for i in range(4)], [(100 - 2 * i, 0.8, 1) for i in range(4)]
    frames = [[left[0], right[0]], [left[1], right[1]], [right[2], left[2]], [left[3], (94, 0.8, 0)]]
    tracks = track(*frames)
    assert tracks[0] == [NO_TRACK, NO_TRACK]
    first, second = tracks[1]
    assert sorted([first, second]) == [1, 2]
    assert tracks[2:] == [[second, first], [first, second]]


def test_low_scores_continue_tracks_but_start_none():
    assert track([(10, 0.9, 0)], [(11, 0.9, 0)], [(12, 0.2, 0)], [(13, 0.9, 0)])[1:] == [[1], [1], [1]]
    assert track(*[[(10, 0.2, 0)]] * 4) == [[NO_TRACK]] * 4
    # Below 0.1, they do not even continue one
    assert track([(10, 0.9, 0)], [(11, 0.9, 0)], [(12, 0.05, 0)])[2] == [NO_TRACK]


def test_frames_without_objects():
    tracks = track([], [(10, 0.9, 0)], [(10, 0.9, 0)], [], [], [(10, 0.9, 0)])
    assert tracks == [[], [NO_TRACK], [1], [], [], [1]]


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingPackageError, match="tracking needs the package trackers .*: pip install"):
        ObjectTracker(fps=10)
