"""Export of a detector of a config: to ONNX with all that comes after the network, compared with detectron2's boxes."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from fbnetv3.deploy.detector_graph.detector_onnx import write_detector
from fbnetv3.deploy.exported_folder import Exported
from fbnetv3.deploy.formats.export_formats import folded
from fbnetv3.deploy.input_images import AnyPicture
from fbnetv3.deploy.predictors.detector_predictor import Boxes, Resizing
from fbnetv3.detection.data.class_names import classes_of
from fbnetv3.detection.data.detection_datasets import class_count, load_dicts
from fbnetv3.detection.export.exportable_detector import one_image
from fbnetv3.detection.inference.image_files import Predictor
from fbnetv3.detection.inference.optimize_detector import FusedBoxHead, fold_norms
from fbnetv3.detection.models.detector_heads import FBNetV3BoxHead
from fbnetv3.errors import DataError, UsageError

_TRIED = 16


def export_detector(
    cfg: CfgNode,
    weights: str | os.PathLike,
    output: str | os.PathLike,
    *,
    images: Sequence[AnyPicture] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "detector",
    command: str = "",
) -> Exported:
    """Export a detector into a new folder, for `fbnetv3.deploy.load`: as ONNX, from an image of any size to boxes.

    The folder is there when ONNX Runtime finds the boxes that detectron2 finds, and not at all otherwise; see
    `write_detector`.

    Args:
        cfg: detectron2's config: architecture, size of the images, thresholds.
        weights: a checkpoint's file or URL, or a `zoo://` entry; averaged weights are preferred.
        output: the folder to make; it may exist, if it is empty.
        images: what to compare on; default: images of `DATASETS.TEST` where they are there, else photographs.
        classes: names of the classes; default: those of `classes_of`.
        name: of the detector.
        command: what to note in the manifest as the origin.

    Raises:
        UsageError: a kind of detector that cannot be exported, or a wrong argument; the text says which and what can.
        UserError: the weights, the export or the folder fail; see `Predictor` and `write_detector`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise UsageError(f"INPUT.FORMAT {cfg.INPUT.FORMAT} cannot be exported: BGR and RGB can")
    names = classes_of(cfg).names if classes is None else classes
    key, count = class_count(cfg)
    if len(names) != count:
        raise UsageError(f"{len(names)} class names for a detector of {count} classes ({key})")
    detector = Predictor(cfg, weights, optimize=False)
    is_bgr = cfg.INPUT.FORMAT == "BGR"
    return write_detector(
        one_image(plain(detector.model), is_bgr),
        Resizing(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        names,
        output,
        original=partial(found_by, detector),
        images=_test_images(cfg) if images is None else images,
        name=name,
        command=command,
    )


def plain(model: nn.Module) -> nn.Module:
    """A copy of a detector in the form that exporters take: norms folded into convolutions where they can be, and the
    average of our box head before its last convolution."""
    copied = folded(model)
    fold_norms(copied)
    heads: Any = getattr(model, "roi_heads", None)
    if isinstance(getattr(heads, "box_head", None), FBNetV3BoxHead):
        side = heads.box_pooler.output_size[0]
        channels = next(heads.box_head.parameters()).shape[1]
        fused = FusedBoxHead(copy.deepcopy(heads.box_head)).requires_grad_(False)
        with torch.no_grad():
            fused(torch.zeros(1, channels, side, side))  # computes what hangs on the regions' size alone
        cast("nn.Module", copied.roi_heads).box_head = fused
    return copied


def found_by(detector: Predictor, pixels: np.ndarray) -> Boxes:
    """What a detector finds in an image, uint8 (H, W, 3) in RGB."""
    (found,) = detector([pixels[:, :, ::-1] if detector.format == "BGR" else pixels])
    return Boxes(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy())


def _test_images(cfg: CfgNode) -> list[str] | None:
    """Some files of the first data set to test on that is there."""
    for name in cfg.DATASETS.TEST:
        try:
            files = [image["file_name"] for image in load_dicts(name)]
        except (DataError, UsageError):
            continue
        found = [file for file in files[:: max(1, len(files) // _TRIED)] if os.path.isfile(file)][:_TRIED]
        if found:
            return found
    return None
