"""How well anchors cover boxes: the IoU of each box with the best anchor on the grid of the feature maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from tabulate import tabulate

from fbnetv3.detection.data.annotations.annotation_summary import SIZE_LIMITS, SIZE_NAMES
from fbnetv3.detection.data.augmentation.image_augmentation import SafeResizeShortestEdge, jitter_size
from fbnetv3.utils.text import evenly_spaced

# Lowest and highest square root of the area in the original image
_SIZES = dict(zip(SIZE_NAMES, itertools.pairwise((0, *SIZE_LIMITS, np.inf)), strict=True))
LOW_IOUS = (0.3, 0.5)
_MAX_IMAGES = 5000


@dataclass(frozen=True)
class TrainingBoxes:
    """Boxes of the training images, after resizing."""

    centers: np.ndarray  # (N, 2), x and y in pixels
    sides: np.ndarray  # (N, 2), width and height in pixels
    image_sides: np.ndarray  # (N, 2), width and height of the image
    original_sizes: np.ndarray  # (N,), square root of the area before resizing

    def __len__(self) -> int:
        return len(self.sides)

    def select(self, indices: np.ndarray) -> TrainingBoxes:
        """Return some of the boxes, by index or as a mask."""
        fields = (self.centers, self.sides, self.image_sides, self.original_sizes)
        return TrainingBoxes(*(field[indices] for field in fields))


@dataclass(frozen=True)
class AnchorLevel:
    """Anchors of one feature map."""

    stride: int  # of the map, in pixels
    offset: float  # of the first anchor's center, as a fraction of the stride
    sizes: tuple[float, ...]  # square roots of the area
    aspect_ratios: tuple[float, ...]  # height / width

    def sides(self) -> np.ndarray:
        """Return width and height of each anchor: (number, 2)."""
        return np.array(
            [(size / ratio**0.5, size * ratio**0.5) for size in self.sizes for ratio in self.aspect_ratios]
        )


def training_boxes(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> TrainingBoxes:
    """Return the boxes of dataset dicts, except crowds, at the size at which they are trained on.

    The size is the middle of `INPUT.MIN_SIZE_TRAIN` or of the large-scale jitter; crops and mosaics are not considered.
    Of many images, 5,000 are used, evenly spaced.
    """
    parts = [np.zeros((0, 7))]
    for index in evenly_spaced(range(len(dicts)), _MAX_IMAGES):
        image = dicts[index]
        size = np.array([image["width"], image["height"]], dtype=float)
        annotations = [a for a in image.get("annotations", ()) if not a.get("iscrowd", 0)]
        corners = np.array([_corners(annotation) for annotation in annotations], dtype=float)
        corners = np.clip(corners.reshape(-1, 2, 2), 0, size)
        corners = corners[(corners[:, 1] > corners[:, 0]).all(1)]
        original_sizes = np.sqrt((corners[:, 1] - corners[:, 0]).prod(1))
        new_size = _resized(cfg, image["height"], image["width"])
        corners = corners * new_size / size
        sides = corners[:, 1] - corners[:, 0]
        image_sides = np.broadcast_to(new_size, sides.shape)
        parts.append(np.column_stack([corners.mean(1), sides, image_sides, original_sizes]))
    values = np.concatenate(parts)
    return TrainingBoxes(values[:, :2], values[:, 2:4], values[:, 4:6], values[:, 6])


def _corners(annotation: Mapping[str, Any]) -> Sequence[float]:
    """Return a box as (x0, y0, x1, y1)."""
    box = list(annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:  # by far the most frequent, and slow to convert
        x, y, width, height = box
        return x, y, x + width, y + height
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _resized(cfg: CfgNode, height: int, width: int) -> np.ndarray:
    """Return width and height of an image after the resizing of the training."""
    jitter = cfg.INPUT.AUGMENTATION.LARGE_SCALE_JITTER
    if jitter:
        target_height, target_width = jitter_size(cfg)
        scale = sum(jitter) / 2 * min(target_height / height, target_width / width)
        return np.maximum(1, np.round([width * scale, height * scale]))
    lengths = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    is_range = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    short_side = sum(lengths) // 2 if is_range and len(lengths) == 2 else lengths[len(lengths) // 2]
    new_height, new_width = SafeResizeShortestEdge.get_output_shape(
        height, width, short_side, cfg.INPUT.MAX_SIZE_TRAIN
    )
    return np.array([max(1, new_width), max(1, new_height)], dtype=float)


def best_ious(boxes: TrainingBoxes, levels: Sequence[AnchorLevel]) -> np.ndarray:
    """Return the IoU of each box with the best anchor: (N,). Of each shape, the best is nearest to the box's center."""
    best = np.zeros(len(boxes))
    areas = boxes.sides.prod(1)
    for level in levels:
        cells = np.round(boxes.centers / level.stride - level.offset)
        last = np.ceil(boxes.image_sides / level.stride) - 1
        distance = np.abs(boxes.centers - (np.clip(cells, 0, last) + level.offset) * level.stride)
        for sides in level.sides():
            overlap = np.minimum(np.minimum(boxes.sides, sides), (boxes.sides + sides) / 2 - distance)
            intersection = np.maximum(overlap, 0).prod(1)
            best = np.maximum(best, intersection / (areas + sides.prod() - intersection))
    return best


def coverage_table(
    boxes: TrainingBoxes, ious: Mapping[str, np.ndarray], threshold: float, title: str = "anchors"
) -> str:
    """Format a table of how well anchors cover boxes, by COCO's sizes.

    Args:
        boxes: the boxes.
        ious: results of `best_ious`, by name of the anchors.
        threshold: IoU from which an anchor is trained to detect the box.
        title: heading of the first column.
    """
    rows = []
    for size in ("all", *_SIZES):
        low, high = _SIZES.get(size, (0, np.inf))
        selected = (boxes.original_sizes >= low) & (boxes.original_sizes < high)
        for name, values in ious.items():
            chosen = values[selected]
            shares = [_percent(chosen < limit) for limit in LOW_IOUS]
            mean = f"{chosen.mean():.2f}" if len(chosen) else ""
            rows.append([name, size, len(chosen), mean, *shares, _percent(chosen >= threshold)])
    headers = [title, "boxes", "number", "mean IoU", *(f"IoU < {limit}" for limit in LOW_IOUS)]
    headers.append(f"best possible recall (IoU >= {threshold:g})")
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * 5))


def _percent(selected: np.ndarray) -> str:
    return f"{100 * selected.mean():.1f}%" if len(selected) else ""
