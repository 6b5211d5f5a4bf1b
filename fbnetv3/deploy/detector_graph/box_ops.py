"""Non-maximum suppression and multilevel ROIAlign as single operators, which exporters do not decompose.

The number of their results depends on the image. `ONNX_TRANSLATIONS` translates them for `torch.onnx.export` into
ONNX's own NonMaxSuppression, TopK and RoiAlign.
"""

# The translations have no annotations: torch's exporter would turn annotated numbers into attributes
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align


@torch.library.custom_op("fbnetv3::multiclass_nms", mutates_args=())
def multiclass_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_boxes: int
) -> Tensor:
    """Apply non-maximum suppression to each set of boxes and each class separately.

    Return the set, class and index of each remaining box, int64 (K, 3), best first.

    Args:
        boxes: S sets of N boxes, (S, N, 4), as x0, y0, x1, y1.
        scores: score of each box for each class, (S, C, N).
        iou_threshold: IoU with a better box above which a box is removed.
        score_threshold: score above which a box is considered.
        max_boxes: maximum number of boxes to keep in each set and class.
    """
    results = []
    for s in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            candidates = (scores[s, c] > score_threshold).nonzero().squeeze(1)
            rows = candidates[nms(boxes[s, candidates], scores[s, c, candidates], iou_threshold)]
            rows = rows[:max_boxes]
            results.append(torch.stack((torch.full_like(rows, s), torch.full_like(rows, c), rows), 1))
    # Sort across all sets and classes
    indices = torch.cat(results)
    order = scores[tuple(indices.unbind(1))].argsort(descending=True, stable=True)
    return indices[order]


@multiclass_nms.register_fake
def _(boxes: Tensor, scores: Tensor, *_: object) -> Tensor:
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)


@torch.library.custom_op("fbnetv3::multilevel_roi_align", mutates_args=())
def multilevel_roi_align(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    scales: list[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Apply ROIAlign to each box on the feature map of its level; return (R, C, output_size, output_size).

    Args:
        maps: one feature map per level, (N, C, H, W).
        boxes: (R, 4), as x0, y0, x1, y1, in pixels of the image.
        images: index of each box's image, int64 (R,).
        levels: level of each box, int64 (R,).
        scales: size of each map relative to the image, such as 1/16.
        output_size: height and width of the result.
        sampling_ratio: samples along each side of an output bin; 0 chooses it by the size of the box.
        aligned: whether pixel centers are at half-integers.
    """
    pooled = boxes.new_zeros(len(boxes), maps[0].shape[1], output_size, output_size)
    rois = torch.cat((images[:, None].to(boxes.dtype), boxes), 1)
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = (levels == level).nonzero().squeeze(1)
        pooled[rows] = roi_align(x, rois[rows], output_size, scale, sampling_ratio, aligned)
    return pooled


@multilevel_roi_align.register_fake
def _(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    scales: list[float],
    output_size: int,
    *_: object,
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], maps[0].shape[1], output_size, output_size)


def _translate_nms(boxes, scores, iou_threshold, score_threshold, max_boxes):
    from onnxscript import opset18 as op

    indices = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[max_boxes]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    # Sort across all sets and classes
    best_scores = op.GatherND(scores, indices)
    _, order = op.TopK(best_scores, op.Shape(best_scores))
    return op.Gather(indices, order)


def _translate_roi_align(maps, boxes, images, levels, scales, output_size, sampling_ratio, aligned):
    from onnxscript import opset18 as op

    def align(x, boxes, images, scale):
        return op.RoiAlign(
            x,
            boxes,
            images,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=output_size,
            output_width=output_size,
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )

    if len(maps) == 1:
        return align(maps[0], boxes, images, scales[0])
    # Pool the boxes of each level
    rows, parts = [], []
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        is_on_level = op.Equal(levels, op.Constant(value_ints=[level]))
        level_rows = op.Squeeze(op.NonZero(is_on_level), op.Constant(value_ints=[0]))
        rows.append(level_rows)
        parts.append(align(x, op.Gather(boxes, level_rows), op.Gather(images, level_rows), scale))
    # Restore the order of the boxes
    all_rows = op.Concat(*rows, axis=0)
    _, order = op.TopK(all_rows, op.Shape(all_rows), largest=0)
    return op.Gather(op.Concat(*parts, axis=0), order)


ONNX_TRANSLATIONS: dict[Any, Callable] = {
    torch.ops.fbnetv3.multiclass_nms.default: _translate_nms,
    torch.ops.fbnetv3.multilevel_roi_align.default: _translate_roi_align,
}
