"""Make a detector faster at inference, with the same detections."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.layers import Conv2d as DetectronConv2d
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from fbnetv3.detection.models.detector_heads import BlockRPNHead, FBNetV3BoxHead
from fbnetv3.modeling.batchnorm_folding import fold_batchnorm
from fbnetv3.modeling.cpu.expanding_pooler import ExpandingPooler, can_expand
from fbnetv3.modeling.cpu.inference_blocks import FusedConv, FusedMBConv, fuse_blocks

# NMS of proposals starts with this multiple of the number of proposals to keep
_NMS_LOOKAHEAD = 2


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Return a copy of a detector that is faster at inference; its detections are the same up to rounding.

    - Norms are folded into convolutions, and weights are channels-last.
    - Squeeze-and-excite runs as matrix products.
    - The box head pools before its last convolution, and applies its first convolution before the ROI pooler if that
      is cheaper.
    - Only boxes with high enough scores are decoded, and NMS of proposals stops once there are enough.

    Modules from neither this project nor detectron2 are left unchanged.

    The copy takes the same inputs. It is in eval mode, cannot be trained, and its state dict does not fit the original.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is FBNetV3BoxHead:
                setattr(parent, name, FusedBoxHead(cast("FBNetV3BoxHead", child)))
            elif type(child) in _LAZY_CLASSES and type(child.box2box_transform) is Box2BoxTransform:
                child.__class__ = _LAZY_CLASSES[type(child)]  # overrides methods, shares all attributes
        if isinstance(parent, StandardROIHeads) and isinstance(parent.box_head, FusedBoxHead):
            _move_expansion_before_pooler(parent)
        if isinstance(parent, BlockRPNHead):
            for name in ("objectness_logits", "anchor_deltas"):
                setattr(parent, name, FusedConv(getattr(parent, name)))
    model = fuse_blocks(model)
    fold_conv_norms(model)
    return model.to(memory_format=torch.channels_last)


def fold_conv_norms(model: nn.Module) -> None:
    """Fold the norms inside detectron2's `Conv2d` layers in place, if they can be folded; for eval mode only."""
    for module in model.modules():
        if not isinstance(module, DetectronConv2d) or not isinstance(module.norm, nn.Module):
            continue
        conv: Any = module
        if folded_parameters := fold_batchnorm(conv, conv.norm):
            weight, bias = folded_parameters
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(cast("Tensor", bias), requires_grad=False)
            conv.norm = None


class FusedBoxHead(nn.Module):
    """`FBNetV3BoxHead` in eval mode, for inference."""

    def __init__(self, head: FBNetV3BoxHead) -> None:
        super().__init__()
        self.output_shape = head.output_shape
        stages: Any = head.blocks.stages
        blocks = [fuse_blocks(block) for stage in stages for block in stage]
        self.blocks = nn.Sequential(*blocks[:-1])
        self.last = blocks[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled proposals (R, C, H, W) to features (R, channels)."""
        x = self.blocks(x)
        if isinstance(self.last, FusedMBConv):
            return self.last.forward_mean(x)
        return self.last(x).mean((2, 3))


def _move_expansion_before_pooler(heads: StandardROIHeads) -> None:
    """Apply the box head's first 1x1 convolution before the ROI pooler instead of after it.

    This needs a first block with such a convolution and without a residual connection.
    """
    box_head = heads.box_head
    first = box_head.blocks[0] if len(box_head.blocks) else box_head.last
    if not isinstance(first, FusedMBConv) or first.has_residual or not can_expand(heads.box_pooler):
        return
    if first.expand is not None and first.expand.norm is None:
        heads.box_pooler = ExpandingPooler(heads.box_pooler, first.expand)
        first.expand = None


class LazyDecodeRPN(RPN):
    """detectron2's RPN that, at inference, decodes only the top-scoring anchors and stops NMS early.

    The proposals are identical: whether NMS keeps a box depends only on boxes with higher scores.
    """

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Return the proposals of each image; see detectron2's method."""
        if self.training:
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        scores = []
        boxes = []
        levels = []
        predictions = zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)
        for level, (level_anchors, logits, deltas) in enumerate(predictions):
            # Select the best anchors of the level, then decode only those
            top_scores, index = logits.topk(min(logits.shape[1], self.pre_nms_topk[False]), dim=1)
            top_deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4)).reshape(-1, 4)
            decoded = self.box2box_transform.apply_deltas(top_deltas, level_anchors.tensor[index.flatten()])
            scores.append(top_scores)
            boxes.append(decoded.view(*index.shape, 4))
            levels.append(torch.full_like(index[0], level))
        # Run NMS image by image, on the boxes of all levels
        images = zip(torch.cat(boxes, 1), torch.cat(scores, 1), image_sizes, strict=True)
        # With a single level there is nothing to tell apart
        all_levels = torch.cat(levels) if len(levels) > 1 else None
        return [self._select_proposals(boxes, scores, all_levels, size) for boxes, scores, size in images]

    def _select_proposals(
        self, boxes: Tensor, scores: Tensor, levels: Tensor | None, size: tuple[int, int]
    ) -> Instances:
        """Return the proposals of an image: valid boxes after NMS, best first."""
        # Find the boxes that detectron2 does not remove, in one pass: a GPU is waited for here, and in NMS
        is_finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes = clip_boxes_to_image(boxes, size)
        is_large = (boxes[:, 2:] - boxes[:, :2] > self.min_box_size).all(dim=1)
        valid = (is_finite & is_large).nonzero().squeeze(1)
        # NMS from the best box to the worst
        order = valid[scores[valid].argsort(descending=True, stable=True)]
        ordered_levels = None if levels is None else levels[order]
        selected = order[self._nms_until_enough(boxes[order], scores[order], ordered_levels)]
        proposals = Instances(size)
        proposals.proposal_boxes = Boxes(boxes[selected])
        proposals.objectness_logits = scores[selected]
        return proposals

    def _nms_until_enough(self, boxes: Tensor, scores: Tensor, levels: Tensor | None) -> Tensor:
        """Return indices of the first `post_nms_topk` boxes that NMS keeps. The boxes are sorted by score."""
        num_proposals = self.post_nms_topk[False]
        num_boxes = _NMS_LOOKAHEAD * num_proposals
        while True:
            best = slice(num_boxes)
            best_levels = None if levels is None else levels[best]
            indices = _nms_per_level(boxes[best], scores[best], best_levels, self.nms_thresh)
            if len(indices) >= num_proposals or num_boxes >= len(boxes):
                return indices[:num_proposals]
            num_boxes *= 2


def _nms_per_level(boxes: Tensor, scores: Tensor, levels: Tensor | None, threshold: float) -> Tensor:
    """Return the sorted indices of the boxes that NMS within each level keeps. The boxes are sorted by score."""
    if levels is None:
        return nms(boxes, scores, threshold)
    selected = []
    for level in levels.unique():
        rows = (levels == level).nonzero().squeeze(1)
        selected.append(rows[nms(boxes[rows], scores[rows], threshold)])
    return torch.cat(selected).sort().values


class LazyDecodeOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor that decodes only boxes above the score threshold; the detections are identical."""

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return the detections of each image and the indices of their proposals; see detectron2's method."""
        scores = self.predict_probs(predictions, proposals)
        counts = [len(image_proposals) for image_proposals in proposals]
        deltas = predictions[1].split(counts)
        pairs = [self._detect(*image) for image in zip(scores, deltas, proposals, strict=True)]
        return [instances for instances, _ in pairs], [rows for _, rows in pairs]

    def _detect(self, scores: Tensor, deltas: Tensor, proposals: Instances) -> tuple[Instances, Tensor]:
        """Return the detections of an image, and the indices of their proposals."""
        # Select the (proposal, class) pairs with high enough scores
        is_finite = torch.isfinite(scores).all(dim=1) & torch.isfinite(deltas).all(dim=1)
        is_candidate = (scores[:, :-1] > self.test_score_thresh) & is_finite[:, None]
        rows, classes = is_candidate.nonzero().unbind(1)
        scores = scores[rows, classes]

        # Decode the boxes of the candidates; deltas are per class, or shared by all classes
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
        candidate_deltas = deltas[rows, classes if deltas.shape[1] > 1 else 0]
        candidate_proposals = proposals.proposal_boxes.tensor[rows]
        decoded = self.box2box_transform.apply_deltas(candidate_deltas, candidate_proposals)
        boxes = clip_boxes_to_image(decoded, proposals.image_size)

        # NMS within each class
        selected = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        if self.test_topk_per_image >= 0:
            selected = selected[: self.test_topk_per_image]
        instances = Instances(proposals.image_size)
        instances.pred_boxes = Boxes(boxes[selected])
        instances.scores = scores[selected]
        instances.pred_classes = classes[selected]
        return instances, rows[selected]


_LAZY_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    RPN: LazyDecodeRPN,
    FastRCNNOutputLayers: LazyDecodeOutputLayers,
}
