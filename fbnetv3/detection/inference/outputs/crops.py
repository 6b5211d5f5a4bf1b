"""Detected objects cut out of their images."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from fbnetv3.detection.inference.detected_image import DetectedImage
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
    different_path,
)
from fbnetv3.detection.inference.visualize import save_picture

_FORBIDDEN = '<>:"/\\|?*'  # in names of files, on one system or another


@DETECTION_OUTPUTS.register(name="crops")
class Crops(DetectionOutput):
    """`crops/CLASS/NAME_1.jpg` and so on, the folders that a classifier's training reads."""

    noun = "crops"

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__(settings)
        self._folder = settings.folder / "crops"
        self._taken: set[Path] = set()
        self._class_folders = [folder_name(name) for name in settings.names]

    def write(self, image: DetectedImage) -> None:
        """Write the box of each object, rounded outwards to whole pixels."""
        height, width = image.pixels.shape[:2]
        stem = Path(image.name).with_suffix("").as_posix().replace("/", "_")
        objects = image.shown
        for number, (index, box) in enumerate(
            zip(objects.pred_classes.tolist(), objects.pred_boxes.tensor.tolist(), strict=True), 1
        ):
            x0, y0 = math.floor(box[0]), math.floor(box[1])
            x1, y1 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
            if x1 > x0 and y1 > y0:
                path = self._folder / self._class_folders[index] / f"{stem}_{number}.jpg"
                crop = Image.fromarray(image.pixels[y0:y1, x0:x1])
                save_picture(crop, different_path(path, self._taken))

    def paths(self) -> list[Path]:
        """Return the folder, if there is any crop."""
        return [self._folder] if self._taken else []


def folder_name(class_name: str) -> str:
    """Return a class name without characters that folders cannot have."""
    name = "".join("_" if c in _FORBIDDEN or not c.isprintable() else c for c in class_name).strip(" .")
    return name or "_"
