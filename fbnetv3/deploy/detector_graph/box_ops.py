"""Two operators of detectors that exporters take whole: non-maximum suppression and regions of maps.

As torch sees them, each is one operator whose result has a length that only the image knows. ONNX has both: what
`onnx_operators` gives for `torch.onnx.export` writes them with its NonMaxSuppression, TopK and RoiAlign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align


@torch.library.custom_op("fbnetv3::best_boxes", mutates_args=())
def best_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    """Non-maximum suppression, for each set of boxes and each class by itself.

    Args:
        boxes: sets of boxes (S, N, 4), as x0, y0, x1, y1.
        scores: of each box for each class (S, C, N).
        iou_threshold: a box goes that shares more than this with a better one.
        score_threshold: a box counts whose score is above this.
        most: boxes to keep of all, the best ones.

    Returns:
        int64 (K, 3), best first: set, class and number of each box that is kept.
    """
    kept = [
        torch.stack((torch.full_like(rows, s), torch.full_like(rows, c), rows), 1)
        for s in range(scores.shape[0])
        for c in range(scores.shape[1])
        for rows in [_suppressed(boxes[s], scores[s, c], iou_threshold, score_threshold)]
    ]
    found = torch.cat(kept)
    order = scores[tuple(found.unbind(1))].argsort(descending=True, stable=True)
    return found[order[:most]]


def _suppressed(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    rows = (scores > score_threshold).nonzero().squeeze(1)
    return rows[nms(boxes[rows], scores[rows], iou_threshold)]


@best_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)


@torch.library.custom_op("fbnetv3::regions", mutates_args=())
def regions(
    maps: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: list[float],
    side: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """ROIAlign, each box from the map of its level.

    Args:
        maps: one for each level (1, C, H, W).
        boxes: (R, 4), as x0, y0, x1, y1, in pixels of the image.
        levels: which map each box takes, int64 (R,).
        scales: places of each map in a pixel.
        side: places along a region's side.
        sampling_ratio: samples along a side of a place; 0 for as many as it covers.
        aligned: whether a pixel's middle is at a half.

    Returns:
        (R, C, side, side).
    """
    found = boxes.new_zeros(len(boxes), maps[0].shape[1], side, side)
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = (levels == level).nonzero().squeeze(1)
        found[rows] = roi_align(x, [boxes[rows]], side, scale, sampling_ratio, aligned)
    return found


@regions.register_fake
def _(
    maps: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: list[float],
    side: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], maps[0].shape[1], side, side)


def onnx_operators() -> dict[Any, Callable]:
    """For `custom_translation_table`. The caller sees to it that onnxscript is installed."""
    from onnxscript import opset18 as op

    # not annotated: torch's exporter takes a parameter annotated as a number for an attribute

    def integers(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def write_best_boxes(boxes, scores, iou_threshold, score_threshold, most):  # type: ignore[no-untyped-def]
        found = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )
        kept = op.GatherND(scores, found)
        count = op.Min(op.Shape(kept), integers(most))
        _, order = op.TopK(kept, count)
        return op.Gather(found, order)

    def write_regions(maps, boxes, levels, scales, side, sampling_ratio, aligned):  # type: ignore[no-untyped-def]
        def pooled(x, boxes, scale):  # type: ignore[no-untyped-def]
            first = op.ConstantOfShape(op.Slice(op.Shape(boxes), [0], [1]))
            return op.RoiAlign(
                x,
                boxes,
                op.Cast(first, to=7),
                coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                output_height=side,
                output_width=side,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )

        if len(maps) == 1:
            return pooled(maps[0], boxes, scales[0])
        rows, parts = [], []
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            chosen = op.Squeeze(op.NonZero(op.Equal(levels, integers(level))), integers(0))
            rows.append(chosen)
            parts.append(pooled(x, op.Gather(boxes, chosen), scale))
        everything = op.Concat(*rows, axis=0)
        _, order = op.TopK(everything, op.Shape(everything), largest=0)
        return op.Gather(op.Concat(*parts, axis=0), order)

    return {
        torch.ops.fbnetv3.best_boxes.default: write_best_boxes,
        torch.ops.fbnetv3.regions.default: write_regions,
    }
