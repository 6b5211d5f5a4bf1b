"""Detectors as functions of one image, in operators that exporters accept: pixels in, boxes, scores and classes out.

detectron2 post-processes Python lists of boxes. Here the same arithmetic, in the same order, is done on tensors.
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

from fbnetv3.deploy.detector_graph.box_ops import multiclass_nms, multilevel_roi_align
from fbnetv3.errors import UsageError

_BELOW_ALL_SCORES = -3e38  # score threshold that excludes only boxes masked with minus infinity
_NO_LIMIT = 2**31 - 1

Size = tuple[int, int]  # height, width
Detections = tuple[Tensor, Tensor, Tensor]  # boxes (N, 4), scores (N,), classes (N,)


class _ExportableDetector(nn.Module):
    """The preprocessing and backbone that all detectors share. The model is in eval mode and on the CPU."""

    model: Any

    def __init__(self, model: nn.Module, is_bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.is_bgr = is_bgr

    def compute_features(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the backbone's feature maps (1, C, H, W) of an image, uint8 (H, W, 3) in RGB."""
        x = image.permute(2, 0, 1)[None].float()
        if self.is_bgr:
            x = x.flip(1)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        # Pad on the right and at the bottom, as detectron2 does
        divisor = self.model.backbone.size_divisibility
        if divisor > 1:
            x = F.pad(x, (0, -x.shape[3] % divisor, 0, -x.shape[2] % divisor))
        return self.model.backbone(x)


class ExportableRCNN(_ExportableDetector):
    """A Faster R-CNN as a function of one image."""

    def forward(self, image: Tensor) -> Detections:
        """Detect objects in an image, uint8 (H, W, 3) in RGB; the detections are sorted by score, best first."""
        rpn = self.model.proposal_generator
        heads = self.model.roi_heads
        size = (image.shape[0], image.shape[1])
        features = self.compute_features(image)
        proposals = self._propose([features[name] for name in rpn.in_features], size)
        return self._detect([features[name] for name in heads.box_in_features], proposals, size)

    def _propose(self, features: list[Tensor], size: Size) -> Tensor:
        """Return proposals (R, 4), best first, as detectron2's `find_top_rpn_proposals` does."""
        rpn = self.model.proposal_generator
        anchors = grid_anchors(rpn.anchor_generator, features)
        scores = []
        boxes = []
        for level_anchors, logits, deltas in zip(anchors, *rpn.rpn_head(features), strict=True):
            # Decode the best anchors of the level
            best, index = _topk(flatten_predictions(logits, 1).flatten(), rpn.pre_nms_topk[False])
            best_deltas = flatten_predictions(deltas, 4)[index]
            decoded = rpn.box2box_transform.apply_deltas(best_deltas, level_anchors[index])
            box = clip_boxes(decoded, size)
            # Mask invalid boxes; dropping them would make shapes depend on the data
            is_large = (box[:, 2:] - box[:, :2] > rpn.min_box_size).all(1)
            is_valid = box.isfinite().all(1) & best.isfinite() & is_large
            scores.append(best.masked_fill(~is_valid, -torch.inf))
            boxes.append(box)
        levels = [torch.full_like(s, level, dtype=torch.int64) for level, s in enumerate(scores)]
        limits = rpn.nms_thresh, _BELOW_ALL_SCORES, rpn.post_nms_topk[False]
        all_boxes = torch.cat(boxes)
        rows = _nms_within_groups(all_boxes, torch.cat(scores), torch.cat(levels), len(features), limits)
        return all_boxes[rows]

    def _detect(self, features: list[Tensor], proposals: Tensor, size: Size) -> Detections:
        """Run the box head on proposals and post-process as detectron2's `fast_rcnn_inference` does."""
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        pooled = pool_regions(heads.box_pooler, features, proposals)
        logits, deltas = predictor(heads.box_head(pooled))

        # Scores (classes, R) without the background
        scores = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(-1)
        is_valid = scores.isfinite().all(1) & deltas.isfinite().all(1)
        scores = scores.masked_fill(~is_valid[:, None], -torch.inf)[:, :-1].t()

        # Boxes (1, R, 4), or (classes, R, 4) if they are regressed per class
        decoded = predictor.box2box_transform.apply_deltas(deltas, proposals)
        boxes = clip_boxes(decoded.unflatten(1, (-1, 4)).transpose(0, 1), size)
        scores = scores[None] if len(boxes) == 1 else scores[:, None]

        limit = predictor.test_topk_per_image if predictor.test_topk_per_image >= 0 else _NO_LIMIT
        selected = multiclass_nms(
            boxes, scores, predictor.test_nms_thresh, predictor.test_score_thresh, limit
        )
        batches, classes, rows = selected.unbind(1)
        # Either the batch or the class index is always 0, so their sum is the class
        return boxes[batches, rows], scores[batches, classes, rows], batches + classes


class ExportableRetinaNet(_ExportableDetector):
    """A RetinaNet as a function of one image."""

    def forward(self, image: Tensor) -> Detections:
        """Detect objects in an image, uint8 (H, W, 3) in RGB; the detections are sorted by score, best first."""
        model = self.model
        maps = self.compute_features(image)
        features = [maps[name] for name in model.head_in_features]
        scores = []
        boxes = []
        classes = []
        anchors = grid_anchors(model.anchor_generator, features)
        for level_anchors, logits, deltas in zip(anchors, *model.head(features), strict=True):
            # Select the best (anchor, class) pairs of the level, then decode only those
            level_scores = flatten_predictions(logits, model.num_classes).sigmoid().flatten()
            best, index = _topk(level_scores, model.test_topk_candidates)
            rows = index // model.num_classes
            best_deltas = flatten_predictions(deltas, 4)[rows]
            boxes.append(model.box2box_transform.apply_deltas(best_deltas, level_anchors[rows]))
            scores.append(best)
            classes.append(index % model.num_classes)
        all_boxes = torch.cat(boxes)
        all_scores = torch.cat(scores)
        all_classes = torch.cat(classes)
        limits = model.test_nms_thresh, model.test_score_thresh, model.max_detections_per_image
        rows = _nms_within_groups(all_boxes, all_scores, all_classes, model.num_classes, limits)
        return all_boxes[rows], all_scores[rows], all_classes[rows]


def make_exportable(model: nn.Module, is_bgr: bool) -> nn.Module:
    """Wrap a detector, in eval mode and on the CPU, as a function of one image, uint8 (H, W, 3) in RGB.

    It returns boxes (N, 4) in pixels of the image, scores (N,) and classes (N,), best first. `is_bgr` says
    whether the detector expects BGR.
    """
    if type(model) is RetinaNet:
        _require_type("MODEL.ANCHOR_GENERATOR.NAME", model.anchor_generator, DefaultAnchorGenerator)
        return ExportableRetinaNet(model, is_bgr).eval()
    _require_type("MODEL.META_ARCHITECTURE", model, GeneralizedRCNN, " or RetinaNet")
    rpn: Any = model.proposal_generator
    heads: Any = model.roi_heads
    _require_type("MODEL.PROPOSAL_GENERATOR.NAME", rpn, RPN)
    _require_type("MODEL.ANCHOR_GENERATOR.NAME", rpn.anchor_generator, DefaultAnchorGenerator)
    _require_type("MODEL.ROI_HEADS.NAME", heads, StandardROIHeads)
    _require_type("the box predictor", heads.box_predictor, FastRCNNOutputLayers)
    _require_type("MODEL.ROI_BOX_HEAD.POOLER_TYPE", heads.box_pooler, ROIPooler)
    _require_type("MODEL.ROI_BOX_HEAD.POOLER_TYPE", heads.box_pooler.level_poolers[0], ROIAlign)
    if heads.mask_on or heads.keypoint_on:
        raise UsageError(
            "mask and keypoint heads cannot be exported: set MODEL.MASK_ON and MODEL.KEYPOINT_ON to False"
        )
    return ExportableRCNN(model, is_bgr).eval()


def _require_type(part: str, module: object, supported: type, others: str = "") -> None:
    if type(module) is not supported:
        advice = f"supported: {supported.__name__}{others}"
        raise UsageError(f"{part} {type(module).__name__} cannot be exported; {advice}")


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores, or all if there are fewer, and their indices; highest first."""
    return scores.topk(torch.sym_min(scores.shape[0], k))


def flatten_predictions(x: Tensor, num_values: int) -> Tensor:
    """Reshape dense predictions (1, A * num_values, H, W) to (H * W * A, num_values)."""
    return x.unflatten(1, (-1, num_values)).permute(0, 3, 4, 1, 2).reshape(-1, num_values)


def _nms_within_groups(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, limits: tuple[float, float, int]
) -> Tensor:
    """Run one NMS in which boxes suppress only boxes of their own group: level or class.

    Return the rows that it keeps, best first.
    """
    scores_by_group = scores[None]
    if num_groups > 1:
        scores_by_group = scores.masked_fill(groups != torch.arange(num_groups)[:, None], -torch.inf)
    return multiclass_nms(boxes[None], scores_by_group[None], *limits)[:, 2]


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes (..., 4) to an image of this height and width."""
    height, width = size
    sides = zip(boxes.unbind(-1), (width, height, width, height), strict=True)
    return torch.stack([values.clamp(0, limit) for values, limit in sides], -1)


def grid_anchors(generator: DefaultAnchorGenerator, features: Sequence[Tensor]) -> list[Tensor]:
    """Return the anchors (H * W * A, 4) of each feature map."""
    anchors = []
    for x, stride, cell_anchors in zip(features, generator.strides, generator.cell_anchors, strict=True):
        height, width = x.shape[2:]
        rows = (torch.arange(height) + generator.offset) * stride
        columns = (torch.arange(width) + generator.offset) * stride
        rows, columns = torch.broadcast_tensors(rows[:, None], columns)
        shifts = torch.stack((columns, rows, columns, rows), 2).view(-1, 1, 4)
        anchors.append((shifts + cell_anchors).view(-1, 4))
    return anchors


def pool_regions(pooler: ROIPooler, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Pool boxes (R, 4) from feature maps (1, C, H, W) to (R, C, side, side), as detectron2's `ROIPooler` does."""
    # Assign boxes to levels by their size, eqn. (1) of the FPN paper
    box_size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.floor(pooler.canonical_level + torch.log2(box_size / pooler.canonical_box_size + 1e-8))
    level = level.clamp(pooler.min_level, pooler.max_level).long() - pooler.min_level
    scales = [align.spatial_scale for align in pooler.level_poolers]
    align = pooler.level_poolers[0]
    side = align.output_size[0]
    return multilevel_roi_align(
        list(features), boxes, level, scales, side, align.sampling_ratio, align.aligned
    )
