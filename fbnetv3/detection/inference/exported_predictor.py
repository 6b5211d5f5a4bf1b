"""An exported detector in the place of one of a config: the same calls, the same results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from fbnetv3.deploy import DetectionPredictor, load
from fbnetv3.detection.data.class_names import Classes, named_classes
from fbnetv3.errors import UsageError


class ExportedPredictor:
    """What `fbnetv3.detection.inference.image_files.Predictor` is, of an exported folder.

    Args:
        folder: what `tools/export_net.py` or `export_detector` has made.
        score_threshold: leaves out what is below, besides what the detector's own threshold does.

    Raises:
        UsageError: the folder holds a classifier.
        ExportError: it is no exported folder, or a damaged one.
        MissingPackageError: ONNX Runtime is not installed.
    """

    format = "RGB"

    def __init__(self, folder: str | os.PathLike, score_threshold: float = 0.0) -> None:
        found = load(folder)
        if not isinstance(found, DetectionPredictor):
            raise UsageError(f"{folder}: holds a classifier, not a detector: tools/classify.py takes it")
        self._predictor, self._threshold = found, score_threshold

    def classes(self, categories: Sequence[Mapping[str, Any]] | None = None) -> Classes:
        """The classes; see `named_classes`."""
        return named_classes(self._predictor.classes, categories)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Images, uint8 (height, width, 3) in RGB, to what is found in each, in its own pixels."""
        return [self._instances(image) for image in images]

    def _instances(self, image: np.ndarray) -> Instances:
        boxes = self._predictor.boxes(image)
        kept = boxes.scores >= self._threshold
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.from_numpy(boxes.boxes[kept]))
        found.scores, found.pred_classes = torch.from_numpy(boxes.scores[kept]), torch.from_numpy(boxes.classes[kept])
        return found
