"""Export a detector, post-processing included, after comparing its boxes with detectron2's."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from fbnetv3.deploy.detector_graph.detector_int8 import DetectorPrecisionSettings
from fbnetv3.deploy.detector_graph.detector_onnx import export_detector_to_onnx
from fbnetv3.deploy.exported_folder import ExportedNetwork
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.deploy.input_images import ImageLike
from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays, ShortSideResize
from fbnetv3.deploy.predictors.instance_maps import encode_mask_runs
from fbnetv3.detection.data.detection_datasets import detector_classes, num_classes_setting
from fbnetv3.detection.export.exportable_detector import make_exportable
from fbnetv3.detection.export.int8_images import dataset_images
from fbnetv3.detection.inference.array_predictors import ConfigPredictor, score_threshold
from fbnetv3.detection.inference.optimize_detector import FusedBoxHead, fold_conv_norms
from fbnetv3.detection.models.detector_heads import FBNetV3BoxHead
from fbnetv3.errors import UsageError

_NUM_COMPARED = 16  # images


def export_detector(
    cfg: CfgNode,
    weights: str | os.PathLike,
    output: str | os.PathLike,
    *,
    images: Sequence[ImageLike] | None = None,
    classes: Sequence[str] | None = None,
    format: str = "onnx",
    precision: DetectorPrecisionSettings | None = None,
    name: str = "detector",
    command: str = "",
) -> ExportedNetwork:
    """Export a detector into a new folder, for `fbnetv3.deploy.load`: from an image of any size to boxes.

    The folder is created only if the export finds the same boxes, masks and keypoints as detectron2; see
    `export_detector_to_onnx`.

    Args:
        cfg: detectron2's config: architecture, image size, thresholds.
        weights: a checkpoint's path or URL, or a `zoo://` entry; averaged weights are preferred.
        output: the folder to create; an existing one must be empty.
        images: images to compare on; default: 16 images of `DATASETS.TEST` if they exist, otherwise
            scikit-learn's photographs.
        classes: class names, which replace those of `detector_classes`; the ids of these remain.
        format: one of `DETECTOR_FORMATS`.
        precision: lower precision than float32, see `detector_precision_settings`.
        name: name of the detector.
        command: command line to record as the origin in the manifest.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = os.fspath(weights)
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise UsageError(f"INPUT.FORMAT {cfg.INPUT.FORMAT} cannot be exported; supported: BGR, RGB")
    key, num_classes = num_classes_setting(cfg)
    if classes is not None and len(classes) != num_classes:
        advice = f"pass {num_classes} names, or set {key} {len(classes)}"
        raise UsageError(f"{len(classes)} class names for a detector of {num_classes} classes: {advice}")
    own_classes = detector_classes(cfg)
    predictor = ConfigPredictor(cfg, weights, optimize=False)
    exportable = make_exportable(simplify_for_export(predictor.model), is_bgr=cfg.INPUT.FORMAT == "BGR")
    return export_detector_to_onnx(
        exportable,
        ShortSideResize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        list(own_classes.values()) if classes is None else classes,
        output,
        original=partial(detect_boxes, predictor),
        images=_test_images(cfg) if images is None else images,
        category_ids=list(own_classes),
        output_names=exportable.output_names,
        score_threshold=score_threshold(cfg),
        skeleton=predictor.skeleton,
        format=format,
        precision=precision,
        name=name,
        command=command,
    )


def simplify_for_export(model: nn.Module) -> nn.Module:
    """Return a copy of a detector that exporters accept.

    Norms are folded, and `FBNetV3BoxHead` pools before its last convolution.
    """
    simplified = prepare_for_export(model)
    fold_conv_norms(simplified)
    heads: Any = getattr(model, "roi_heads", None)
    if isinstance(getattr(heads, "box_head", None), FBNetV3BoxHead):
        box_head = FusedBoxHead(copy.deepcopy(heads.box_head)).requires_grad_(False)
        side = heads.box_pooler.output_size[0]
        channels = next(heads.box_head.parameters()).shape[1]
        with torch.no_grad():
            # Cache what depends only on the size of the regions
            box_head(torch.zeros(1, channels, side, side))
        cast("nn.Module", simplified.roi_heads).box_head = box_head
    return simplified


def detect_boxes(predictor: ConfigPredictor, image: np.ndarray) -> DetectionArrays:
    """Detect objects in an image, uint8 (H, W, 3) in RGB, with `mask_runs` and keypoints if there are such heads."""
    if predictor.input_format == "BGR":
        image = image[:, :, ::-1]
    (detections,) = predictor([image])
    boxes = detections.pred_boxes.tensor.numpy()
    arrays = DetectionArrays(boxes, detections.scores.numpy(), detections.pred_classes.numpy())
    if detections.has("pred_masks"):
        arrays = replace(arrays, mask_runs=encode_mask_runs(detections.pred_masks.numpy()))
    if detections.has("pred_keypoints"):
        arrays = replace(arrays, keypoints=detections.pred_keypoints.numpy())
    return arrays


def _test_images(cfg: CfgNode) -> list[str] | None:
    """Return images of the first test dataset that has any on disk."""
    return dataset_images(cfg.DATASETS.TEST, _NUM_COMPARED) or None
