"""Pictures of a training: detections on test images beside what is annotated, and the curves of loss and precision."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode
from torch import nn

from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from fbnetv3.detection.data.detection_datasets import load_dicts
from fbnetv3.utils.files import atomic_write

_COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink", "tab:olive", "tab:red", "tab:purple", "tab:blue")


def draw_examples(
    cfg: CfgNode, model: nn.Module, name: str, picture: Path, *, count: int = 8, score: float = 0.5
) -> None:
    """Run a detector on some images of a data set, and draw what it finds beside what is annotated, into a PNG.

    Args:
        cfg: sizes of the images.
        model: from detectron2's `build_model`; it is left in the mode that it was in.
        name: a registered data set.
        picture: where to.
        count: how many of its images, from all over it.
        score: detections below are left out.

    Raises:
        DataError: missing or damaged annotations.
        OutputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    dicts = load_dicts(name)
    chosen = [dicts[i] for i in np.linspace(0, len(dicts) - 1, min(count, len(dicts))).astype(int)]
    classes = MetadataCatalog.get(name).get("thing_classes", [])
    pairs = 2
    lines = -(-len(chosen) // pairs)
    figure = Figure(figsize=(12, 2.6 * lines + 0.3), layout="constrained", dpi=100)
    places = figure.subplots(lines, 2 * pairs, squeeze=False)
    for axes in places.flat:
        axes.set_axis_off()
    mapper = FBNetV3DatasetMapper(cfg, is_train=False)
    for image, (left, right) in zip(chosen, places.reshape(-1, 2), strict=False):
        pixels = read_image(image["file_name"], "RGB")
        truth = [(a["category_id"], _corners(a), None) for a in image.get("annotations", [])]
        with inference_context(model), torch.no_grad():
            found = model([mapper(image)])[0]["instances"].to("cpu")
        kept = found[found.scores >= score]
        boxes = zip(kept.pred_classes.tolist(), kept.pred_boxes.tensor.tolist(), kept.scores.tolist(), strict=True)
        _draw(left, pixels, truth, classes, "annotated")
        _draw(right, pixels, list(boxes), classes, "detected")
    _save(figure, picture)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw loss and average precision by step, from the metrics file of a training, into a PNG.

    Raises:
        OutputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for key in ("total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"):
        if points := [(e["iteration"] + 1, e[key]) for e in entries if key in e]:
            left.plot(*zip(*points, strict=True), lw=1, label=key)
    left.set(xlabel="step", ylabel="loss, median of 20 steps")
    left.legend(frameon=False, fontsize="small")
    names = sorted({key for e in entries for key in e if key.endswith(("bbox/AP", "bbox/AP50"))})
    for key in names:
        points = [(e["iteration"], e[key]) for e in entries if key in e]
        right.plot(*zip(*points, strict=True), "o-", ms=3, label=key.replace("bbox/", ""))
    right.set(xlabel="step", ylabel="average precision, %", ylim=(0, 100))
    if names:
        right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, picture)


def _draw(
    axes: Any,
    pixels: np.ndarray,
    boxes: Sequence[tuple[int, Sequence[float], float | None]],
    classes: Sequence[str],
    title: str,
) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(pixels)
    axes.set_title(title, fontsize="small")
    for number, (x1, y1, x2, y2), score in boxes:
        colour = _COLOURS[number % len(_COLOURS)]
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.4))
        name = classes[number] if number < len(classes) else str(number)
        text = name if score is None else f"{name} {score:.2f}"
        outside = y1 > 0.07 * len(pixels)  # there is room above the box
        about = {"ha": "left", "va": "bottom" if outside else "top", "fontsize": 7, "color": "black", "clip_on": True}
        axes.text(max(x1, 0), max(y1, 0), text, **about, bbox={"fc": colour, "ec": "none", "alpha": 0.8, "pad": 0.6})


def _corners(annotation: dict[str, Any]) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _save(figure: Any, picture: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    with atomic_write(picture) as f:
        f.write(image.getvalue())
