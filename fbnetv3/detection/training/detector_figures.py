"""Figures of a detector's training run: detections next to annotations, and curves of loss and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances
from torch import nn

from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from fbnetv3.detection.data.detection_datasets import load_dataset_dicts
from fbnetv3.detection.data.detection_images import read_image_array
from fbnetv3.detection.inference.visualize import class_color
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes

_PAIRS_PER_ROW = 2
_LOSSES = ("total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")


class _Box(NamedTuple):
    corners: Sequence[float]
    class_index: int
    score: float | None = None


def plot_examples(
    cfg: CfgNode, model: nn.Module, name: str, figure_file: Path, *, count: int = 8, min_score: float = 0.5
) -> None:
    """Draw detections next to annotations for some images of a dataset into a PNG.

    Args:
        cfg: image sizes.
        model: from detectron2's `build_model`; its mode is restored.
        name: a registered dataset.
        figure_file: where to write.
        count: number of images, evenly spaced over the dataset.
        min_score: detections with lower scores are omitted.
    """
    dicts = load_dataset_dicts(name)
    indices = np.linspace(0, len(dicts) - 1, min(count, len(dicts))).astype(int)
    classes = MetadataCatalog.get(name).get("thing_classes", [])
    mapper = FBNetV3DatasetMapper(cfg, is_train=False)

    # A grid of pairs: annotated, detected
    num_rows = -(-len(indices) // _PAIRS_PER_ROW)
    figure = new_figure(12, 2.6 * num_rows + 0.3, dpi=100)
    grid = figure.subplots(num_rows, 2 * _PAIRS_PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (annotated_axes, detected_axes) in zip(indices, grid.reshape(-1, 2), strict=False):
        image = dicts[index]
        pixels = read_image_array(image["file_name"], "RGB")
        _draw_boxes(annotated_axes, pixels, _annotated_boxes(image), classes, "annotated")
        with inference_context(model), torch.no_grad():
            instances = model([mapper(image)])[0]["instances"].to("cpu")
        _draw_boxes(detected_axes, pixels, _detected_boxes(instances, min_score), classes, "detected")
    save_figure(figure, figure_file)


def plot_detection_curves(metrics: Path, figure_file: Path) -> None:
    """Draw loss and average precision by step, from a run's metrics file, into a PNG."""
    entries = read_metrics(metrics, "iteration")
    figure = new_figure(9, 3.4, dpi=110)
    loss_axes, precision_axes = figure.subplots(1, 2)
    # detectron2 numbers steps from 0 with the losses; evaluations follow complete steps
    for key in _LOSSES:
        if points := [(entry["iteration"] + 1, entry[key]) for entry in entries if key in entry]:
            loss_axes.plot(*zip(*points, strict=True), lw=1, label=key)
    loss_axes.legend(frameon=False, fontsize="small")
    style_axes(loss_axes, xlabel="step", ylabel="loss, median of 20 steps")
    precisions = sorted({key for entry in entries for key in entry if key.endswith(("bbox/AP", "bbox/AP50"))})
    for key in precisions:
        points = [(entry["iteration"], entry[key]) for entry in entries if key in entry]
        precision_axes.plot(*zip(*points, strict=True), "o-", ms=3, label=key.replace("bbox/", ""))
    if precisions:
        precision_axes.legend(frameon=False, fontsize="small")
    style_axes(precision_axes, xlabel="step", ylabel="average precision, %", ylim=(0, 100))
    save_figure(figure, figure_file)


def _annotated_boxes(image: dict[str, Any]) -> list[_Box]:
    boxes = []
    for annotation in image.get("annotations", []):
        corners = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        boxes.append(_Box(corners, annotation["category_id"]))
    return boxes


def _detected_boxes(instances: Instances, min_score: float) -> list[_Box]:
    instances = instances[instances.scores >= min_score]
    columns = instances.pred_boxes.tensor, instances.pred_classes, instances.scores
    return [_Box(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _draw_boxes(axes: Any, pixels: np.ndarray, boxes: Sequence[_Box], classes: Sequence[str], title: str) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(pixels)
    axes.set_title(title, fontsize="small")
    for box in boxes:
        # Pixel centers have integer coordinates in matplotlib, pixel edges in boxes
        x1, y1, x2, y2 = box.corners
        color = tuple(value / 255 for value in class_color(box.class_index))
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.4))
        label = classes[box.class_index] if box.class_index < len(classes) else str(box.class_index)
        if box.score is not None:
            label = f"{label} {box.score:.2f}"
        # The label is above the box, or inside it at the top of the image
        has_room_above = y1 > 0.07 * len(pixels)
        axes.text(
            max(x1, 0),
            max(y1, 0),
            label,
            ha="left",
            va="bottom" if has_room_above else "top",
            fontsize=7,
            color="black",
            clip_on=True,
            bbox={"fc": color, "ec": "none", "alpha": 0.8, "pad": 0.6},
        )
