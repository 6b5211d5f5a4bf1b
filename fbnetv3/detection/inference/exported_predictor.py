"""Run an exported detector through the interface of `ConfigPredictor`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from fbnetv3.deploy import DetectorPredictor, load
from fbnetv3.detection.data.class_names import DetectorClasses, classes_from_names
from fbnetv3.errors import UsageError


class ExportedPredictor:
    """An exported detector with the interface of `fbnetv3.detection.inference.image_files.ConfigPredictor`.

    Args:
        folder: written by `tools/export_net.py` or `export_detector`.
        score_threshold: drop detections below it, in addition to the detector's own threshold.

    Raises:
        UsageError: the folder contains a classifier.
        ExportError: it is not an exported folder, or a corrupt one.
        MissingPackageError: ONNX Runtime is not installed.
    """

    format = "RGB"

    def __init__(self, folder: str | os.PathLike, score_threshold: float = 0.0) -> None:
        predictor = load(folder)
        if not isinstance(predictor, DetectorPredictor):
            raise UsageError(f"{folder}: contains a classifier, not a detector: use tools/classify.py")
        self._predictor = predictor
        self._score_threshold = score_threshold

    def classes(self, categories: Sequence[Mapping[str, Any]] | None = None) -> DetectorClasses:
        """Return the classes; see `classes_from_names`."""
        return classes_from_names(self._predictor.classes, categories)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, 3) in RGB. Boxes are in pixels of each image."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Instances:
        detections = self._predictor.boxes(image)
        selected = detections.scores >= self._score_threshold
        # Convert to detectron2's structures
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.from_numpy(detections.boxes[selected]))
        instances.scores = torch.from_numpy(detections.scores[selected])
        instances.pred_classes = torch.from_numpy(detections.classes[selected])
        return instances
