"""An image or a frame with the objects that were detected in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances

from fbnetv3.detection.inference.video.object_tracker import NO_TRACK


@dataclass(frozen=True)
class FrameInfo:
    """Where a frame is from."""

    video: str  # its name
    number: int  # in the video, from 0
    seconds: float  # time in the video
    fps: float  # frames per second among the frames that are used
    num_frames: int | None  # that are used; None if it is unknown
    is_live: bool


@dataclass(frozen=True)
class DetectedImage:
    """An image, or a frame of a video, with the objects in it, as detectron2's `Instances` on the CPU.

    Their fields are `pred_boxes` in pixels, `scores`, `pred_classes`, and, if there are any, `pred_masks`,
    `pred_keypoints` and `track_ids` (-1: no track).
    """

    name: str  # path of the image; of a frame, the name of the video and its number
    image_id: int | str
    pixels: np.ndarray  # uint8 (height, width, 3) in RGB
    detections: Instances  # for COCO results
    shown: Instances  # those of them with high scores, for everything else
    frame: FrameInfo | None = None  # None: not from a video


def track_ids(instances: Instances) -> list[int | None]:
    """Return the track of each object, None for objects without."""
    if not instances.has("track_ids"):
        return [None] * len(instances)
    return [None if number == NO_TRACK else number for number in instances.track_ids.tolist()]
