"""Detections as a results file in COCO's format, and a list of the images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from fbnetv3.detection.inference.detected_image import DetectedImage, track_ids
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
)
from fbnetv3.utils.files import make_folder, write_json

RESULTS_FILE = "coco_instances_results.json"
IMAGES_FILE = "images.json"


@DETECTION_OUTPUTS.register(name="json")
class CocoResults(DetectionOutput):
    """`coco_instances_results.json`, which pycocotools' `loadRes` reads.

    Without an annotation file, `images.json` has the ids of the images and categories. Frames have their video, number
    and time there. Tracked objects have a "track_id".
    """

    noun = "results"

    def __init__(self, settings: OutputSettings) -> None:
        super().__init__(settings)
        make_folder(settings.folder)
        self._category_ids = list(settings.classes)
        self._results: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []

    def write(self, image: DetectedImage) -> None:
        """Collect the detections."""
        height, width = image.pixels.shape[:2]
        entry = {"id": image.image_id, "file_name": image.name, "width": width, "height": height}
        if image.frame is not None:
            entry |= {"video": image.frame.video, "frame": image.frame.number}
            entry |= {"seconds": round(image.frame.seconds, 3)}
        self._images.append(entry)
        results = instances_to_coco_json(image.detections, image.image_id)
        for result, track in zip(results, track_ids(image.detections), strict=True):
            result = {**result, "category_id": self._category_ids[result["category_id"]]}
            self._results.append(result if track is None else {**result, "track_id": track})

    def close(self) -> None:
        """Write the files."""
        folder = self.settings.folder
        write_json(folder / RESULTS_FILE, self._results, indent=None)
        if not self.settings.has_annotations:
            categories = [{"id": number, "name": name} for number, name in self.settings.classes.items()]
            content = {"images": self._images, "annotations": [], "categories": categories}
            write_json(folder / IMAGES_FILE, content, indent=None)

    def paths(self) -> list[Path]:
        """Return the results file."""
        return [self.settings.folder / RESULTS_FILE]
