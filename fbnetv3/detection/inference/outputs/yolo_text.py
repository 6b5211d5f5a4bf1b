"""Detections as labels in YOLO's text format, for example to correct them and train on them."""

from __future__ import annotations

from pathlib import Path

import yaml

from fbnetv3.detection.data.formats.yolo_labels import format_box_line
from fbnetv3.detection.inference.detected_image import DetectedImage
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
    different_path,
)
from fbnetv3.utils.files import make_folder, write_text


@DETECTION_OUTPUTS.register(name="yolo")
class YoloLabels(DetectionOutput):
    """`labels/NAME.txt` for each image or frame, also without objects, and `labels/classes.yaml` with the class names.

    A line is the class index, the center, the width and the height of a box as fractions of the image's sides, and, on
    request, its score.
    """

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__(settings)
        self._folder = make_folder(settings.folder / "labels")
        self._taken: set[Path] = set()
        content = {"names": dict(enumerate(settings.names))}
        write_text(self._folder / "classes.yaml", yaml.safe_dump(content, allow_unicode=True))

    def write(self, image: DetectedImage) -> None:
        """Write an image's file."""
        path = different_path((self._folder / image.name).with_suffix(".txt"), self._taken)
        height, width = image.pixels.shape[:2]
        objects = image.shown
        lines = []
        for index, box, score in zip(
            objects.pred_classes.tolist(),
            objects.pred_boxes.tensor.tolist(),
            objects.scores.tolist(),
            strict=True,
        ):
            x0, y0, x1, y1 = box
            sides = [x0, y0, x1 - x0, y1 - y0]
            shown_score = score if self.settings.yolo_scores else None
            line = format_box_line(index, sides, (width, height), shown_score, style=".6f")
            lines.append(f"{line}\n")
        make_folder(path.parent)
        write_text(path, "".join(lines))

    def paths(self) -> dict[str, Path]:
        """Return the folder."""
        return {"labels": self._folder}
