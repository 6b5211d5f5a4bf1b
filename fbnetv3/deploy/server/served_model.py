"""Classifiers and detectors as a server uses them: bytes in, plain values for JSON out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from fbnetv3.data.image_io import EncodedImage
from fbnetv3.deploy.predictor_loading import load
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import Detection, DetectorInput, DetectorPredictor
from fbnetv3.errors import UsageError
from fbnetv3.modeling.torch_device import CPU
from fbnetv3.utils.files import expand_path

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class RequestOptions:
    """What a request asks for, besides its images."""

    top: int | None = None  # classes per image
    threshold: float | None = None  # minimum probability or score


@dataclass(frozen=True, eq=False)
class QueuedImage(Generic[Prepared]):
    """An image that waits for its batch."""

    name: str
    prepared: Prepared
    options: RequestOptions


class ServedModel(ABC, Generic[Prepared]):
    """A network with a name."""

    task: str
    runtime_name: str
    classes: Sequence[str]

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def check_options(self, options: RequestOptions) -> None:
        """Raise a UsageError for options that the network does not have, or values out of range."""

    @abstractmethod
    def prepare(self, image: EncodedImage) -> Prepared:
        """Decode and resize an image; raise a DataError if it cannot be read."""

    @abstractmethod
    def run(self, images: Sequence[QueuedImage[Prepared]]) -> list[list[dict[str, Any]]]:
        """Return the predictions for each image, best first."""

    def describe(self) -> dict[str, Any]:
        """Return what clients want to know about the network."""
        return {
            "name": self.name,
            "task": self.task,
            "runtime": self.runtime_name,
            "classes": list(self.classes),
        }


class ServedClassifier(ServedModel[np.ndarray]):
    """A classifier; its predictions have "label", "probability" and "class_index"."""

    task = "classification"

    def __init__(self, name: str, predictor: ClassifierPredictor) -> None:
        super().__init__(name)
        self.classes = predictor.classes
        self.runtime_name = predictor.runtime.name
        self._predictor = predictor

    def check_options(self, options: RequestOptions) -> None:
        """Raise a UsageError for limits that the predictor does not accept."""
        self._predictor.check_limits(options.top, options.threshold)

    def prepare(self, image: EncodedImage) -> np.ndarray:
        """Return the network's input, float32 (1, channels, H, W)."""
        return self._predictor.preprocess(image)

    def run(self, images: Sequence[QueuedImage[np.ndarray]]) -> list[list[dict[str, Any]]]:
        """Run the network once, and choose the classes that each request asks for."""
        logits = self._predictor.run(np.concatenate([image.prepared for image in images]))
        results = []
        for image, row in zip(images, logits, strict=True):
            options = image.options
            (predictions,) = self._predictor.rank_classes(
                row[None], [image.name], options.top, options.threshold
            )
            results.append([asdict(prediction) for prediction in predictions])
        return results


class ServedDetector(ServedModel[DetectorInput]):
    """A detector; its predictions have "label", "score", "class_index", "box" and perhaps "keypoints"."""

    task = "detection"

    def __init__(self, name: str, predictor: DetectorPredictor) -> None:
        super().__init__(name)
        self.classes = predictor.classes
        self.runtime_name = predictor.runtime.name
        self._predictor = predictor

    def check_options(self, options: RequestOptions) -> None:
        """Raise a UsageError for a score threshold that is not in [0, 1], or a number of classes."""
        if options.top is not None:
            raise UsageError(f"top {options.top}: {self.name} is a detector; use threshold")
        if not 0 <= (options.threshold or 0) <= 1:
            raise UsageError(f"threshold: {options.threshold} must be in [0, 1]")

    def prepare(self, image: EncodedImage) -> DetectorInput:
        """Return the resized image."""
        return self._predictor.prepare(image, image.name)

    def run(self, images: Sequence[QueuedImage[DetectorInput]]) -> list[list[dict[str, Any]]]:
        """Run images of the same size together. Masks, which may be as large as the image, are left out."""
        arrays = self._predictor.detect_prepared([image.prepared for image in images])
        results = []
        for image, each in zip(images, arrays, strict=True):
            without_masks = replace(each, mask_probabilities=None)
            threshold = image.options.threshold or 0.0
            detections = self._predictor.to_detections(without_masks, image.prepared.size, threshold)
            results.append([_describe_detection(detection) for detection in detections])
        return results


def _describe_detection(detection: Detection) -> dict[str, Any]:
    values: dict[str, Any] = {
        "label": detection.label,
        "score": detection.score,
        "class_index": detection.class_index,
        "box": list(detection.box),
    }
    if detection.keypoints is not None:
        values["keypoints"] = detection.keypoints.tolist()
    return values


def load_served_models(
    folders: Sequence[str | os.PathLike], runtime: str | None = None, device: str = CPU
) -> dict[str, ServedModel]:
    """Load exported folders, and return them by name: the name of the folder. See `load` for runtime and device.

    Raises:
        UsageError: two folders have the same name.
        ExportError: a folder is not an exported folder, or one of its files is missing or corrupt.
    """
    models: dict[str, ServedModel] = {}
    for folder in folders:
        name = expand_path(folder).resolve().name
        if name in models:
            raise UsageError(f"{folder}: another folder is also called {name}: rename one of them")
        predictor = load(folder, runtime, device)
        if isinstance(predictor, DetectorPredictor):
            models[name] = ServedDetector(name, predictor)
        else:
            models[name] = ServedClassifier(name, predictor)
    return models
