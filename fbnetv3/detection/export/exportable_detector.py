"""A detector as a function of one image, in operators that exporters take: pixels in, boxes, scores and classes out.

What detectron2 does with Python's lists of boxes is done here with tensors, in its order and with its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.deploy.detector_graph.box_ops import best_boxes, regions
from fbnetv3.errors import UsageError

_LOWEST = -3e38  # a score that every box has which counts
_ALL = 2**31 - 1

Size = tuple[int, int]
Found = tuple[Tensor, Tensor, Tensor]


class _OneImage(nn.Module):
    """What both kinds of detectors begin with.

    Args:
        model: the detector, in eval mode, on the CPU.
        is_bgr: whether it wants BGR.
    """

    model: Any

    def __init__(self, model: nn.Module, is_bgr: bool) -> None:
        super().__init__()
        self.model, self.is_bgr = model, is_bgr

    def maps(self, image: Tensor, names: Sequence[str]) -> list[Tensor]:
        """The backbone's maps (1, C, H, W) of an image, uint8 (H, W, 3) in RGB."""
        x = image.permute(2, 0, 1)[None].float()
        if self.is_bgr:
            x = x.flip(1)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        multiple = self.model.backbone.size_divisibility
        if multiple > 1:
            x = F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))
        found = self.model.backbone(x)
        return [found[name] for name in names]


class OneImageRCNN(_OneImage):
    """A Faster R-CNN."""

    def forward(self, image: Tensor) -> Found:
        """An image, uint8 (H, W, 3) in RGB, to boxes (N, 4), scores (N,) and classes (N,), best first."""
        size, rpn, heads = (image.shape[0], image.shape[1]), self.model.proposal_generator, self.model.roi_heads
        names = list(dict.fromkeys((*rpn.in_features, *heads.box_in_features)))
        found = dict(zip(names, self.maps(image, names), strict=True))
        proposals = self._proposals([found[name] for name in rpn.in_features], size)
        return self._detections([found[name] for name in heads.box_in_features], proposals, size)

    def _proposals(self, maps: list[Tensor], size: Size) -> Tensor:
        """Boxes (R, 4), best first, as `find_top_rpn_proposals` has it."""
        rpn = self.model.proposal_generator
        logits, deltas = rpn.rpn_head(maps)
        scores, boxes = [], []
        for anchors, logit, delta in zip(grid_anchors(rpn.anchor_generator, maps), logits, deltas, strict=True):
            best, index = _top(places_first(logit, 1).flatten(), rpn.pre_nms_topk[False])
            chosen = places_first(delta, 4)[index]
            box = clipped(rpn.box2box_transform.apply_deltas(chosen, anchors[index]), size)
            good = box.isfinite().all(1) & best.isfinite() & (box[:, 2:] - box[:, :2] > rpn.min_box_size).all(1)
            scores.append(best.masked_fill(~good, -torch.inf))
            boxes.append(box)
        levels = torch.cat([torch.full_like(score, level, dtype=torch.int64) for level, score in enumerate(scores)])
        joined = torch.cat(boxes)
        by_level = apart(torch.cat(scores), levels, len(maps))
        kept = best_boxes(joined[None], by_level[None], rpn.nms_thresh, _LOWEST, rpn.post_nms_topk[False])
        return joined[kept[:, 2]]

    def _detections(self, maps: list[Tensor], proposals: Tensor, size: Size) -> Found:
        """What the box head makes of proposals, as `fast_rcnn_inference` has it."""
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        logits, deltas = predictor(heads.box_head(pooled(heads.box_pooler, maps, proposals)))
        scores = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(-1)
        good = scores.isfinite().all(1) & deltas.isfinite().all(1)
        scores = scores.masked_fill(~good[:, None], -torch.inf)[:, :-1].t()
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals).unflatten(1, (-1, 4)).transpose(0, 1)
        boxes = clipped(boxes, size)  # (1, R, 4), or a box for each class
        scores = scores[None] if len(boxes) == 1 else scores[:, None]
        most = predictor.test_topk_per_image
        kept = best_boxes(
            boxes, scores, predictor.test_nms_thresh, predictor.test_score_thresh, most if most >= 0 else _ALL
        )
        boxes_of, classes, rows = kept.unbind(1)
        return boxes[boxes_of, rows], scores[boxes_of, classes, rows], boxes_of + classes  # one of the two is 0


class OneImageRetinaNet(_OneImage):
    """A RetinaNet."""

    def forward(self, image: Tensor) -> Found:
        """An image, uint8 (H, W, 3) in RGB, to boxes (N, 4), scores (N,) and classes (N,), best first."""
        model = self.model
        maps = self.maps(image, model.head_in_features)
        scores, boxes, classes = [], [], []
        for anchors, logits, deltas in zip(grid_anchors(model.anchor_generator, maps), *model.head(maps), strict=True):
            every = places_first(logits, model.num_classes).sigmoid().flatten()
            best, index = _top(every, model.test_topk_candidates)
            rows = index // model.num_classes
            boxes.append(model.box2box_transform.apply_deltas(places_first(deltas, 4)[rows], anchors[rows]))
            scores.append(best)
            classes.append(index % model.num_classes)
        score, box, number = torch.cat(scores), torch.cat(boxes), torch.cat(classes)
        by_class = apart(score, number, model.num_classes)
        kept = best_boxes(
            box[None],
            by_class[None],
            model.test_nms_thresh,
            model.test_score_thresh,
            model.max_detections_per_image,
        )[:, 2]
        return box[kept], score[kept], number[kept]


def one_image(model: nn.Module, is_bgr: bool) -> nn.Module:
    """A detector as a function of one image.

    Args:
        model: the detector, in eval mode, on the CPU.
        is_bgr: whether it wants BGR.

    Returns:
        From an image, uint8 (H, W, 3) in RGB, to boxes (N, 4) in its pixels, scores (N,) and classes (N,), best first.

    Raises:
        UsageError: a kind of detector that this does not know; the text says which it does.
    """
    if type(model) is RetinaNet:
        _check("MODEL.ANCHOR_GENERATOR.NAME", model.anchor_generator, DefaultAnchorGenerator)
        return OneImageRetinaNet(model, is_bgr).eval()
    _check("MODEL.META_ARCHITECTURE", model, GeneralizedRCNN, "GeneralizedRCNN or RetinaNet")
    rpn: Any = model.proposal_generator
    heads: Any = model.roi_heads
    _check("MODEL.PROPOSAL_GENERATOR.NAME", rpn, RPN)
    _check("MODEL.ANCHOR_GENERATOR.NAME", rpn.anchor_generator, DefaultAnchorGenerator)
    _check("MODEL.ROI_HEADS.NAME", heads, StandardROIHeads)
    _check("the box predictor", heads.box_predictor, FastRCNNOutputLayers)
    _check("MODEL.ROI_BOX_HEAD.POOLER_TYPE", heads.box_pooler, ROIPooler)
    _check("MODEL.ROI_BOX_HEAD.POOLER_TYPE", heads.box_pooler.level_poolers[0], ROIAlign)
    if heads.mask_on or heads.keypoint_on:
        raise UsageError("masks and keypoints are not exported, boxes are: a detector without them is")
    return OneImageRCNN(model, is_bgr).eval()


def _check(what: str, part: object, wanted: type, known: str = "") -> None:
    if type(part) is not wanted:
        raise UsageError(f"{what} {type(part).__name__} cannot be exported: {known or wanted.__name__} can")


def _top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest scores and where they are; all, sorted, where there are fewer."""
    return scores.topk(torch.sym_min(scores.shape[0], most))


def places_first(x: Tensor, numbers: int) -> Tensor:
    """A map's predictions (1, A * numbers, H, W), so many of each anchor, as (H * W * A, numbers)."""
    return x.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).reshape(-1, numbers)


def apart(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """Scores (N,) of boxes that belong to groups, as (count, N): minus infinity in the groups of others."""
    if count == 1:
        return scores[None]
    return scores.masked_fill(groups != torch.arange(count)[:, None], -torch.inf)


def clipped(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (..., 4), with what lies outside an image of this height and width cut off."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)), -1)


def grid_anchors(generator: DefaultAnchorGenerator, maps: Sequence[Tensor]) -> list[Tensor]:
    """The generator's anchors of each map, (H * W * A, 4)."""
    found = []
    for x, stride, cells in zip(maps, generator.strides, generator.cell_anchors, strict=True):
        rows, columns = ((torch.arange(side) + generator.offset) * stride for side in x.shape[2:])
        rows, columns = torch.broadcast_tensors(rows[:, None], columns)
        shifts = torch.stack((columns, rows, columns, rows), 2).view(-1, 1, 4)
        found.append((shifts + cells).view(-1, 4))
    return found


def pooled(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What a pooler of aligned regions cuts from maps (1, C, H, W) for boxes (R, 4): (R, C, side, side)."""
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.floor(pooler.canonical_level + torch.log2(side / pooler.canonical_box_size + 1e-8))
    level = level.clamp(pooler.min_level, pooler.max_level).long() - pooler.min_level
    scales = [align.spatial_scale for align in pooler.level_poolers]
    align = pooler.level_poolers[0]
    return regions(list(maps), boxes, level, scales, align.output_size[0], align.sampling_ratio, align.aligned)
