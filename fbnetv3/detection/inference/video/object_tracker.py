"""Track objects from frame to frame with ByteTrack, from the package `trackers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from fbnetv3.errors import MissingPackageError

_MIN_SCORE = 0.1  # of the detections that can continue a track, as in the paper
NO_TRACK = -1


class ObjectTracker:
    """ByteTrack (https://arxiv.org/abs/2110.06864) for one video.

    Detections with high scores start tracks. Those with low scores, for example of an object that is half hidden, only
    continue tracks. The class does not matter: an object keeps its track if the detector changes its mind.

    Args:
        fps: frames per second; a track ends after a second without the object.

    Raises:
        MissingPackageError: the package `trackers` is not installed.
    """

    def __init__(self, fps: float) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise MissingPackageError(
                f"tracking needs the package trackers ({error}): pip install trackers"
            ) from None
        self._detections: Any = supervision.Detections
        self._tracker = ByteTrackTracker(
            frame_rate=fps, track_activation_threshold=0.5, high_conf_det_threshold=0.5
        )

    def update(self, detections: Instances, is_high: torch.Tensor) -> Instances:
        """Return the detections of the next frame with their tracks, `track_ids` (N,) int64.

        Ids count from 1; -1 means no track. An object has a track from its second frame on.

        Args:
            detections: the detections, with `pred_boxes` and `scores`.
            is_high: which of them have high scores, bool (N,).
        """
        (indices,) = np.nonzero(((detections.scores >= _MIN_SCORE) | is_high).numpy())
        tracked: Any = self._tracker.update(
            self._detections(
                xyxy=detections.pred_boxes.tensor.numpy()[indices].astype(np.float64).reshape(-1, 4),
                confidence=is_high.numpy()[indices].astype(
                    np.float64
                ),  # each class has a threshold of its own
                class_id=indices,  # to tell them apart, because the tracker changes their order
            )
        )
        ids = np.full(len(detections), NO_TRACK, np.int64)
        if len(tracked):
            is_tracked = tracked.tracker_id >= 0
            ids[tracked.class_id[is_tracked]] = tracked.tracker_id[is_tracked] + 1
        result = Instances(detections.image_size, **detections.get_fields())
        result.track_ids = torch.from_numpy(ids)
        return result
