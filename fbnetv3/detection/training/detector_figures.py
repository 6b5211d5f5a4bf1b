"""Figures of a detector's training run: detections next to annotations, and curves of loss and average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper, read_image_array
from fbnetv3.detection.data.detection_datasets import load_dataset_dicts, num_classes_setting
from fbnetv3.detection.data.keypoint_names import config_skeleton
from fbnetv3.detection.inference.visualize import draw_detections
from fbnetv3.detection.training.checked_trainer import LOG_PERIOD
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes

_PAIRS_PER_ROW = 2
_LOSSES = ("total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")


def plot_examples(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    figure_file: Path,
    *,
    classes: Sequence[str] | None = None,
    count: int = 8,
    min_score: float = 0.5,
) -> None:
    """Save a figure of evenly spaced images of a dataset: their annotations next to the detections.

    Detections with lower scores than `min_score` are not drawn. `classes` are the detector's class names, by default
    those of the dataset, in the same order.
    """
    dicts = load_dataset_dicts(name, classes)
    indices = np.linspace(0, len(dicts) - 1, min(count, len(dicts))).astype(int)
    names = classes or MetadataCatalog.get(name).get("thing_classes")
    names = names or list(map(str, range(num_classes_setting(cfg)[1])))
    skeleton = config_skeleton(cfg, [name])
    mapper = FBNetV3DatasetMapper(cfg, is_train=False)

    # A grid of pairs: annotated, detected
    num_rows = -(-len(indices) // _PAIRS_PER_ROW)
    figure = new_figure(12, 2.6 * num_rows + 0.3, dpi=200)  # photographs at about their own size
    grid = figure.subplots(num_rows, 2 * _PAIRS_PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (left, right) in zip(indices, grid.reshape(-1, 2), strict=False):
        image = dicts[index]
        pixels = read_image_array(image["file_name"], "RGB")
        annotations = image.get("annotations", [])
        corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        annotated = Instances(pixels.shape[:2])
        annotated.pred_boxes = Boxes(torch.tensor(corners).reshape(-1, 4))
        annotated.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        if skeleton:
            # Objects without keypoints have none that are visible
            unlabeled = [0.0] * 3 * len(skeleton.names)
            keypoints = [a.get("keypoints") or unlabeled for a in annotations]
            annotated.pred_keypoints = torch.tensor(keypoints).reshape(-1, len(skeleton.names), 3)
        with inference_context(model), torch.no_grad():
            detected = model([mapper(image)])[0]["instances"].to("cpu")
        detected = detected[detected.scores >= min_score]
        for axes, title, instances in ((left, "annotated", annotated), (right, "detected", detected)):
            axes.set_title(title, fontsize="small")
            axes.imshow(draw_detections(pixels, instances, names, skeleton))
    save_figure(figure, figure_file)


def plot_detection_curves(metrics: Path, figure_file: Path) -> None:
    """Save a figure of loss and average precision by step, from a run's metrics file."""
    entries = read_metrics(metrics, "iteration")
    figure = new_figure(9, 3.4, dpi=110)
    loss_axes, precision_axes = figure.subplots(1, 2)
    for key in _LOSSES:
        if points := points_by_step(entries, key):
            loss_axes.plot(*zip(*points, strict=True), lw=1, label=key)
    loss_axes.legend(frameon=False, fontsize="small")
    style_axes(loss_axes, xlabel="step", ylabel=f"loss, median of {LOG_PERIOD} steps")
    precisions = sorted(
        {key for entry in entries for key in entry if key.endswith(("bbox/AP", "bbox/AP50"))}
    )
    for key in precisions:
        points = points_by_step(entries, key)
        precision_axes.plot(*zip(*points, strict=True), "o-", ms=3, label=key.replace("bbox/", ""))
    if precisions:
        precision_axes.legend(frameon=False, fontsize="small")
    style_axes(precision_axes, xlabel="step", ylabel="average precision, %", ylim=(0, 100))
    save_figure(figure, figure_file)


def points_by_step(entries: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Return (number of completed steps, value) of each entry of a run's metrics that has `key`.

    detectron2 numbers steps from 0; the entry of the final evaluation, after all losses, has the number of steps.
    """
    last = max((entry["iteration"] for entry in entries if "total_loss" in entry), default=-1)
    return [
        (int(entry["iteration"] + (entry["iteration"] <= last)), entry[key])
        for entry in entries
        if key in entry
    ]
