"""The interface of outputs, and their registry. `--save` takes its names; more can be registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.detection.data.detection_datasets import Classes
from fbnetv3.detection.inference.detected_image import DetectedImage
from fbnetv3.registry import Registry

DETECTION_OUTPUTS = Registry("detection output")


@dataclass(frozen=True)
class OutputSettings:
    """What outputs need to know."""

    folder: Path
    classes: Classes  # by category id
    has_annotations: bool = False  # whether image ids and categories are those of an annotation file
    yolo_scores: bool = False  # whether YOLO's labels have scores
    codec: str = ""  # of videos; default: see `VideoWriter`
    skeleton: KeypointSkeleton | None = None  # of a detector of keypoints

    @property
    def names(self) -> list[str]:
        """Class names by class index."""
        return list(self.classes.values())


class DetectionOutput:
    """Something that a detection run writes."""

    def __init__(self, settings: OutputSettings) -> None:
        self.settings = settings

    def write(self, image: DetectedImage) -> None:
        """Write the detections in an image or frame, or collect them."""
        raise NotImplementedError

    def close(self) -> None:
        """Complete the files; also called after an error or Ctrl-C."""

    def paths(self) -> dict[str, Path]:
        """Return the files and folders that have been written, by a word for their contents."""
        raise NotImplementedError


def different_path(path: Path, taken: set[Path]) -> Path:
    """Return a path that is not taken, and add it: with a number, if necessary."""
    unique, number = path, 1
    while unique in taken:
        number += 1
        unique = path.with_stem(f"{path.stem}_{number}")
    taken.add(unique)
    return unique
