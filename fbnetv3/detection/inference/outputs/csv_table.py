"""Detections as a table."""

from __future__ import annotations

import csv
from pathlib import Path

from fbnetv3.detection.inference.detected_image import DetectedImage, track_ids
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
)
from fbnetv3.utils.files import as_output_error, make_folder

_COLUMNS = ("image", "frame", "seconds", "class", "score", "x0", "y0", "x1", "y1", "track")


@DETECTION_OUTPUTS.register(name="csv")
class CsvTable(DetectionOutput):
    """`detections.csv`, with a row for each object that is shown; corners are in pixels.

    Rows are written at once, so that the table of an endless stream can be read at any time.
    """

    noun = "table"

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__(settings)
        self._path = make_folder(settings.folder) / "detections.csv"
        with as_output_error(self._path):
            # Names of files that are not UTF-8 keep their bytes
            self._file = self._path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(_COLUMNS)

    def write(self, image: DetectedImage) -> None:
        """Append a row for each object."""
        frame = image.frame
        place = [image.name, "", ""]
        if frame is not None:
            place = [frame.video, str(frame.number), f"{frame.seconds:.3f}"]
        objects = image.shown
        rows = zip(
            objects.pred_classes.tolist(),
            objects.scores.tolist(),
            objects.pred_boxes.tensor.tolist(),
            track_ids(objects),
            strict=True,
        )
        with as_output_error(self._path):
            for index, score, box, track in rows:
                corners = [f"{value:.2f}" for value in box]
                self._writer.writerow([*place, self.settings.names[index], f"{score:.4f}", *corners, track])
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def paths(self) -> list[Path]:
        """Return the table."""
        return [self._path]
