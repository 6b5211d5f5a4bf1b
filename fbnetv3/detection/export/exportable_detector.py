"""Detectors as functions of images, in operators that exporters accept: pixels in, boxes, scores and classes out.

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
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.deploy.detector_graph.box_ops import multiclass_nms, multilevel_roi_align
from fbnetv3.deploy.predictors.detector_predictor import DETECTOR_OUTPUTS, HEATMAPS, MASKS
from fbnetv3.errors import UsageError

_BELOW_ALL_SCORES = -3e38  # score threshold that excludes only boxes masked with minus infinity

Size = tuple[int, int]  # height, width


class _ExportableDetector(nn.Module):
    """The preprocessing and backbone that all detectors share. The model is in eval mode and on the CPU.

    Subclasses map images of one size, uint8 (N, H, W, 3) in RGB, to a tuple of tensors, whose names are
    `output_names`, with a row for each detection, best first: boxes (K, 4) in pixels of the image, scores, class
    indices and image indices (K,), then the masks or heatmaps of other heads.
    """

    output_names: tuple[str, ...] = DETECTOR_OUTPUTS
    model: Any

    def __init__(self, model: nn.Module, is_bgr: bool) -> None:
        super().__init__()
        self.model = model
        self.is_bgr = is_bgr

    def compute_features(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the backbone's feature maps (N, C, H, W) of images, uint8 (N, H, W, 3) in RGB."""
        x = images.permute(0, 3, 1, 2).float()
        if self.is_bgr:
            x = x.flip(1)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        # Pad on the right and at the bottom, as detectron2 does
        divisor = self.model.backbone.size_divisibility
        if divisor > 1:
            x = F.pad(x, (0, -x.shape[3] % divisor, 0, -x.shape[2] % divisor))
        return self.model.backbone(x)


class ExportableRCNN(_ExportableDetector):
    """A Faster R-CNN, Mask R-CNN or Keypoint R-CNN as a function of images."""

    def __init__(self, model: nn.Module, is_bgr: bool) -> None:
        super().__init__(model, is_bgr)
        heads = self.model.roi_heads
        extra = ((MASKS,) if heads.mask_on else ()) + ((HEATMAPS,) if heads.keypoint_on else ())
        self.output_names = (*DETECTOR_OUTPUTS, *extra)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in images, uint8 (N, H, W, 3) in RGB."""
        rpn = self.model.proposal_generator
        heads = self.model.roi_heads
        num_images = images.shape[0]
        size = (images.shape[1], images.shape[2])
        features = self.compute_features(images)
        proposals, proposal_images = self._propose([features[name] for name in rpn.in_features], size)
        box_features = [features[name] for name in heads.box_in_features]
        detections = self._detect(box_features, proposals, proposal_images, num_images, size)
        boxes, _, classes, image_indices = detections
        extra = []
        if heads.mask_on:
            mask_features = [features[name] for name in heads.mask_in_features]
            pooled = pool_regions(heads.mask_pooler, mask_features, boxes, image_indices)
            extra.append(_class_masks(_run_layers(heads.mask_head, pooled), classes))
        if heads.keypoint_on:
            keypoint_features = [features[name] for name in heads.keypoint_in_features]
            pooled = pool_regions(heads.keypoint_pooler, keypoint_features, boxes, image_indices)
            extra.append(_run_layers(heads.keypoint_head, pooled))
        return (*detections, *extra)

    def _propose(self, features: list[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Return proposals (R, 4), best first, and the index of each one's image (R,).

        They are those of detectron2's `find_top_rpn_proposals`.
        """
        rpn = self.model.proposal_generator
        anchors = grid_anchors(rpn.anchor_generator, features)
        scores = []
        boxes = []
        for level_anchors, logits, deltas in zip(anchors, *rpn.rpn_head(features), strict=True):
            # Decode the best anchors of the level
            best, index = _topk(flatten_predictions(logits, 1).flatten(1), rpn.pre_nms_topk[False])
            decoded = _decode(rpn.box2box_transform, flatten_predictions(deltas, 4), level_anchors, index)
            box = clip_boxes(decoded, size)
            # Mask invalid boxes; dropping them would make shapes depend on the data
            is_large = (box[..., 2:] - box[..., :2] > rpn.min_box_size).all(-1)
            is_valid = box.isfinite().all(-1) & best.isfinite() & is_large
            scores.append(best.masked_fill(~is_valid, -torch.inf))
            boxes.append(box)
        levels = [torch.full_like(s, level, dtype=torch.int64) for level, s in enumerate(scores)]
        limits = rpn.nms_thresh, _BELOW_ALL_SCORES, rpn.post_nms_topk[False]
        all_boxes = torch.cat(boxes, 1)
        groups = torch.cat(levels, 1)
        images, rows = _nms_within_groups(all_boxes, torch.cat(scores, 1), groups, len(features), limits)
        return all_boxes[images, rows], images

    def _detect(
        self, features: list[Tensor], proposals: Tensor, images: Tensor, num_images: int, size: Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the box head on proposals and post-process as detectron2's `fast_rcnn_inference` does."""
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        pooled = pool_regions(heads.box_pooler, features, proposals, images)
        logits, deltas = predictor(heads.box_head(pooled))

        # Scores (classes, R) without the background
        scores = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(-1)
        is_valid = scores.isfinite().all(1) & deltas.isfinite().all(1)
        scores = scores.masked_fill(~is_valid[:, None], -torch.inf)[:, :-1].t()

        # Boxes (classes, R, 4); a predictor that is agnostic to the class has one box for all classes
        decoded = predictor.box2box_transform.apply_deltas(deltas, proposals)
        boxes = clip_boxes(decoded.unflatten(1, (-1, 4)).transpose(0, 1), size)
        boxes = boxes.expand(scores.shape[0], -1, -1)

        # NMS within each class and image
        is_of_image = images == torch.arange(num_images)[:, None]
        image_scores = scores[:, None].masked_fill(~is_of_image, -torch.inf)
        limit = predictor.test_topk_per_image
        max_boxes = limit if limit >= 0 else torch.iinfo(torch.int32).max
        selected = multiclass_nms(
            boxes, image_scores, predictor.test_nms_thresh, predictor.test_score_thresh, max_boxes
        )
        selected = _limit_per_image(selected, 1, num_images, max_boxes)
        classes, image_indices, rows = selected.unbind(1)
        return boxes[classes, rows], scores[classes, rows], classes, image_indices


class ExportableRetinaNet(_ExportableDetector):
    """A RetinaNet as a function of images."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in images, uint8 (N, H, W, 3) in RGB."""
        model = self.model
        maps = self.compute_features(images)
        features = [maps[name] for name in model.head_in_features]
        scores = []
        boxes = []
        classes = []
        anchors = grid_anchors(model.anchor_generator, features)
        for level_anchors, logits, deltas in zip(anchors, *model.head(features), strict=True):
            # Select the best (anchor, class) pairs of the level, then decode only those
            level_scores = flatten_predictions(logits, model.num_classes).sigmoid().flatten(1)
            best, index = _topk(level_scores, model.test_topk_candidates)
            rows = index // model.num_classes
            flat_deltas = flatten_predictions(deltas, 4)
            boxes.append(_decode(model.box2box_transform, flat_deltas, level_anchors, rows))
            scores.append(best)
            classes.append(index % model.num_classes)
        all_boxes = torch.cat(boxes, 1)
        all_scores = torch.cat(scores, 1)
        all_classes = torch.cat(classes, 1)
        limits = model.test_nms_thresh, model.test_score_thresh, model.max_detections_per_image
        image_indices, rows = _nms_within_groups(
            all_boxes, all_scores, all_classes, model.num_classes, limits
        )
        selected = image_indices, rows
        return all_boxes[selected], all_scores[selected], all_classes[selected], image_indices


def make_exportable(model: nn.Module, is_bgr: bool) -> _ExportableDetector:
    """Wrap a detector, in eval mode and on the CPU, as a function of images; see `_ExportableDetector`.

    `is_bgr` says whether the detector expects BGR.
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
    _require_pooler("MODEL.ROI_BOX_HEAD.POOLER_TYPE", heads.box_pooler)
    if heads.mask_on:
        _require_type("MODEL.ROI_MASK_HEAD.NAME", heads.mask_head, MaskRCNNConvUpsampleHead)
        _require_pooler("MODEL.ROI_MASK_HEAD.POOLER_TYPE", heads.mask_pooler)
    if heads.keypoint_on:
        _require_type("MODEL.ROI_KEYPOINT_HEAD.NAME", heads.keypoint_head, KRCNNConvDeconvUpsampleHead)
        _require_pooler("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", heads.keypoint_pooler)
    return ExportableRCNN(model, is_bgr).eval()


def _require_type(part: str, module: object, supported: type, others: str = "") -> None:
    if type(module) is not supported:
        advice = f"supported: {supported.__name__}{others}"
        raise UsageError(f"{part} {type(module).__name__} cannot be exported; {advice}")


def _require_pooler(key: str, pooler: Any) -> None:
    _require_type(key, pooler, ROIPooler)
    _require_type(key, pooler.level_poolers[0], ROIAlign)


def _run_layers(head: nn.Module, pooled: Tensor) -> Tensor:
    """Run the layers of a mask or keypoint head, without detectron2's post-processing of lists."""
    layers: Any = head
    return layers.layers(pooled)


def _class_masks(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the mask probabilities (K, M, M) of each detection's class from logits (K, classes or 1, M, M)."""
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid()
    index = classes[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
    return logits.gather(1, index)[:, 0].sigmoid()


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row, or all if there are fewer, and their indices; highest first."""
    return scores.topk(torch.sym_min(scores.shape[1], k), dim=1)


def _decode(transform: Any, deltas: Tensor, anchors: Tensor, index: Tensor) -> Tensor:
    """Decode the boxes (N, K, 4) of the anchors (A, 4) at `index` (N, K); deltas are (N, A, 4)."""
    selected = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    boxes = transform.apply_deltas(selected.reshape(-1, 4), anchors[index.flatten()])
    return boxes.view(index.shape[0], index.shape[1], 4)


def flatten_predictions(x: Tensor, num_values: int) -> Tensor:
    """Reshape dense predictions (N, A * num_values, H, W) to (N, H * W * A, num_values)."""
    return x.unflatten(1, (-1, num_values)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def _nms_within_groups(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, limits: tuple[float, float, int]
) -> tuple[Tensor, Tensor]:
    """Run NMS in which boxes suppress only boxes of their own image and group: level or class.

    Boxes are (N, K, 4), scores and groups (N, K). `limits` are the IoU and score thresholds and the number of boxes
    per image. Return the image and the row of each box that it keeps, best first.
    """
    group_scores = scores[:, None]
    if num_groups > 1:
        is_of_group = groups[:, None] == torch.arange(num_groups)[:, None]
        group_scores = group_scores.masked_fill(~is_of_group, -torch.inf)
    selected = multiclass_nms(boxes, group_scores, *limits)
    images, _, rows = _limit_per_image(selected, 0, boxes.shape[0], limits[2]).unbind(1)
    return images, rows


def _limit_per_image(selected: Tensor, column: int, num_images: int, limit: int) -> Tensor:
    """Keep the first `limit` rows of each image; `column` holds the index of the image."""
    images = selected[:, column]
    counts = (images[:, None] == torch.arange(num_images)).long().cumsum(0)
    rank = counts.gather(1, images[:, None])[:, 0]
    return selected[(rank <= limit).nonzero()[:, 0]]


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


def pool_regions(pooler: ROIPooler, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
    """Pool boxes (R, 4) from feature maps (N, C, H, W) to (R, C, side, side), as detectron2's `ROIPooler` does.

    `images` is the index of each box's image, int64 (R,).
    """
    # Assign boxes to levels by their size, eqn. (1) of the FPN paper
    box_size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.floor(pooler.canonical_level + torch.log2(box_size / pooler.canonical_box_size + 1e-8))
    level = level.clamp(pooler.min_level, pooler.max_level).long() - pooler.min_level
    scales = [align.spatial_scale for align in pooler.level_poolers]
    align = pooler.level_poolers[0]
    side = align.output_size[0]
    return multilevel_roi_align(
        list(features), boxes, images, level, scales, side, align.sampling_ratio, align.aligned
    )
