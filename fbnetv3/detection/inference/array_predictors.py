"""Detectors as functions of arrays: one interface for configs with weights, and for exported folders."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.deploy import DetectorPredictor, load
from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays
from fbnetv3.deploy.predictors.instance_maps import paste_masks
from fbnetv3.detection.data.dataset_mapper import inference_resize
from fbnetv3.detection.data.detection_datasets import (
    Categories,
    Classes,
    classes_from_names,
    detector_classes,
)
from fbnetv3.detection.data.keypoint_names import detector_skeleton
from fbnetv3.detection.inference.optimize_detector import optimize_for_inference
from fbnetv3.detection.recorded_detectors import config_from_checkpoint
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.errors import UsageError
from fbnetv3.modeling.torch_device import CPU, copy_to_device
from fbnetv3.training.devices.device_memory import explain_out_of_memory
from fbnetv3.utils.logging_setup import quiet_detectron2

logger = logging.getLogger(__name__)

_SAVE_MEMORY = "lower INPUT.MIN_SIZE_TEST, or the number of images per batch"


class ArrayPredictor(Protocol):
    """A detector that takes images as arrays, and returns detectron2's `Instances`."""

    input_format: str
    """Order of the channels: "RGB", "BGR" or another of detectron2's."""

    skeleton: KeypointSkeleton | None
    """The keypoints that it finds; None if it finds none, or does not know their names."""

    def classes(self, categories: Categories | None = None) -> Classes:
        """Return the classes by id, ordered by class index; those of an annotation file if given."""

    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, channels); boxes are in pixels of each image."""


class ConfigPredictor:
    """A detector built from a config that takes images of any size as arrays.

    `weights` is a checkpoint's path or URL, or a `zoo://` entry; averaged weights are preferred. If `optimize` is true,
    `optimize_for_inference` is applied.
    """

    def __init__(self, cfg: CfgNode, weights: str | os.PathLike, *, optimize: bool = True) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        # Keep build_model from loading a classifier's weights
        self.cfg.MODEL.WEIGHTS = os.fspath(weights)
        with quiet_detectron2():
            model = load_detector(build_model(self.cfg), weights).eval()
            self.model = optimize_for_inference(model) if optimize else model
        if cfg.TEST.AUG.ENABLED:
            logger.info("TEST.AUG is for evaluation: images are detected in as they are")
        self.input_format = self.cfg.INPUT.FORMAT
        self.skeleton = detector_skeleton(self.cfg)
        self._resize = inference_resize(self.cfg)
        self._device = torch.device(self.cfg.MODEL.DEVICE)

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, overrides: Sequence[str] = (), *, optimize: bool = True
    ) -> ConfigPredictor:
        """Build the detector that a checkpoint, or the folder of a run, records; see `config_from_checkpoint`."""
        cfg = config_from_checkpoint(path, overrides)
        return cls(cfg, cfg.MODEL.WEIGHTS, optimize=optimize)

    def classes(self, categories: Categories | None = None) -> Classes:
        """Return the detector's classes; see `detector_classes`."""
        return detector_classes(self.cfg, categories)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, channels) in `INPUT.FORMAT`; sizes may differ.

        Only images that have the same size after resizing form a batch: padding to a common size would change the
        results, because squeeze-and-excite averages over the padding too. Detections are on the CPU, in pixels of their
        image: `pred_boxes`, `scores`, `pred_classes`, and `pred_masks` if the detector predicts masks.
        """
        # Resize the images and group them by size
        inputs: list[dict[str, Any]] = []
        indices_by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            resized = self._resize.get_transform(image).apply_image(image)
            # As bytes, a quarter of the floats that the model converts them to
            channels_first = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            tensor = copy_to_device(channels_first, self._device)
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
            indices_by_shape[tensor.shape].append(i)

        # Run one batch for each size
        detections: dict[int, Instances] = {}
        for indices in indices_by_shape.values():
            with quiet_detectron2(), explain_out_of_memory(self._device, _SAVE_MEMORY):
                outputs = self.model([inputs[i] for i in indices])
            for i, output in zip(indices, outputs, strict=True):
                detections[i] = output["instances"].to("cpu")
        return [detections[i] for i in range(len(images))]


class ExportedPredictor:
    """An exported detector with the interface of `ConfigPredictor`.

    `score_threshold` applies in addition to the detector's own; for runtime and device, see `fbnetv3.deploy.load`.
    """

    input_format = "RGB"

    def __init__(
        self,
        folder: str | os.PathLike,
        score_threshold: float = 0.0,
        runtime: str | None = None,
        device: str = CPU,
    ) -> None:
        predictor = load(folder, runtime, device)
        if not isinstance(predictor, DetectorPredictor):
            raise UsageError(f"{folder}: contains a classifier, not a detector: use tools/classify.py")
        self._predictor = predictor
        self.skeleton = predictor.skeleton
        self._score_threshold = score_threshold

    @property
    def min_score(self) -> float:
        """The detector's own threshold: the export has no detections below it."""
        return self._predictor.min_score

    def classes(self, categories: Categories | None = None) -> Classes:
        """Return the classes; see `classes_from_names`."""
        return classes_from_names(self._predictor.classes, categories, self._predictor.category_ids)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, 3) in RGB, with results as of `ConfigPredictor`."""
        results = []
        for image, arrays in zip(images, self._predictor.detect_batch(images), strict=True):
            selected = arrays.select(arrays.scores >= self._score_threshold)
            results.append(to_instances(selected, image.shape))
        return results


def to_instances(arrays: DetectionArrays, shape: Sequence[int]) -> Instances:
    """Convert the detections in an image of the shape (height, width, ...) to detectron2's structure."""
    height, width = shape[:2]
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.from_numpy(arrays.boxes))
    instances.scores = torch.from_numpy(arrays.scores)
    instances.pred_classes = torch.from_numpy(arrays.classes)
    if arrays.mask_probabilities is not None:
        masks = paste_masks(arrays.mask_probabilities, arrays.boxes, height, width)
        instances.pred_masks = torch.from_numpy(masks)
    if arrays.keypoints is not None:
        instances.pred_keypoints = torch.from_numpy(arrays.keypoints)
    return instances


def set_score_threshold(cfg: CfgNode, score: float) -> None:
    """Set the minimum score of detections, for all kinds of detectors."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score


def score_threshold(cfg: CfgNode) -> float:
    """Return the minimum score of detections."""
    heads = cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.ROI_HEADS
    return heads.SCORE_THRESH_TEST
