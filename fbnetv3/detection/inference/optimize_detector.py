"""A detector in the form that is fastest when nothing is trained, with the same boxes."""

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
from torchvision.ops import nms

from fbnetv3.detection.models.detector_heads import FBNetV3BoxHead, FBNetV3RPNHead
from fbnetv3.detection.models.torchvision_efficientnet import EfficientNetRPNHead
from fbnetv3.modeling.cpu.expanding_pooler import ExpandingPooler, can_expand
from fbnetv3.modeling.cpu.inference_blocks import FusedConv, FusedMBConv, folded, fuse_blocks

# How many times the wanted number of proposals the suppression looks at first.
_FIRST_LOOK = 2


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """A copy of a detector for inference alone, whose detections are the model's own up to rounding.

    Norms are folded into convolutions, weights lie channels-last, squeezes are matrix products; the average goes before
    the last convolution, and the box head's first convolution before the pooler where that is less work; boxes are
    decoded only where their scores count, and the suppression of proposals ends when there are enough. What is not of
    ours or detectron2's stays as it is.

    Args:
        model: any detector of detectron2's. It is not changed.

    Returns:
        The copy, in eval mode and without gradients. It takes the same inputs; it is not for training, and its
        checkpoints would not fit the model.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is FBNetV3BoxHead:
                setattr(parent, name, FusedBoxHead(cast("FBNetV3BoxHead", child)))
            elif type(child) in _FRUGAL and type(child.box2box_transform) is Box2BoxTransform:
                setattr(parent, name, _as(_FRUGAL[type(child)], child))
        if isinstance(parent, StandardROIHeads) and isinstance(parent.box_head, FusedBoxHead):
            _expand_first(parent)
        if isinstance(parent, (FBNetV3RPNHead, EfficientNetRPNHead)):
            parent.objectness_logits = FusedConv(parent.objectness_logits)
            parent.anchor_deltas = FusedConv(parent.anchor_deltas)
    model = fuse_blocks(model)
    fold_norms(model)
    return model.to(memory_format=torch.channels_last)


def fold_norms(model: nn.Module) -> None:
    """Fold the norms that detectron2's convolutions have within, in place, where they can be. In eval mode the outputs
    stay the same up to rounding."""
    for module in model.modules():
        conv: Any = module
        norm = getattr(conv, "norm", None) if isinstance(conv, DetectronConv2d) else None
        both = folded(conv, norm) if isinstance(norm, nn.Module) else None
        if both is not None:
            conv.weight, conv.bias = (nn.Parameter(cast("Tensor", value), requires_grad=False) for value in both)
            conv.norm = None


class FusedBoxHead(nn.Module):
    """`FBNetV3BoxHead` for inference.

    Args:
        head: the box head, in eval mode.
    """

    def __init__(self, head: FBNetV3BoxHead) -> None:
        super().__init__()
        self.output_shape = head.output_shape
        stages: Any = head.blocks.stages
        blocks = [fuse_blocks(block) for stage in stages for block in stage]
        self.blocks, self.last = nn.Sequential(*blocks[:-1]), blocks[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Proposals' maps (R, C, H, W) to features (R, channels)."""
        x = self.blocks(x)
        return self.last.pooled(x) if isinstance(self.last, FusedMBConv) else self.last(x).mean((2, 3))


def _expand_first(heads: StandardROIHeads) -> None:
    """Let the box head's first convolution go before the pooler, where that can be."""
    first = heads.box_head.blocks[0] if len(heads.box_head.blocks) else heads.box_head.last
    if not (can_expand(heads.box_pooler) and isinstance(first, FusedMBConv) and not first.has_residual):
        return
    if first.expand is not None and first.expand.norm is None:
        heads.box_pooler, first.expand = ExpandingPooler(heads.box_pooler, first.expand), None


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """A module as one of a subclass, whose parts are the same."""
    found = kind.__new__(kind)
    found.__dict__.update(module.__dict__)
    return found


class FrugalRPN(RPN):
    """detectron2's RPN, which in inference decodes the best anchors alone, and suppresses until it has enough boxes.

    The proposals are the same: what non-maximum suppression keeps of the best boxes does not hang on the others.
    """

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Arguments and results are those of detectron2's."""
        if self.training:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        scores, boxes, levels = [], [], []
        for level, (anchor, logits, deltas) in enumerate(
            zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)
        ):
            best, index = logits.topk(min(logits.shape[1], self.pre_nms_topk[False]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4)).reshape(-1, 4)
            decoded = self.box2box_transform.apply_deltas(chosen, anchor.tensor[index.flatten()])
            scores.append(best)
            boxes.append(decoded.view(*index.shape, 4))
            levels.append(torch.full_like(index[0], level))
        joined = torch.cat(scores, 1), torch.cat(boxes, 1)
        return [
            self._best(Boxes(box), score, torch.cat(levels), size)
            for score, box, size in zip(*joined, image_sizes, strict=True)
        ]

    def _best(self, boxes: Boxes, scores: Tensor, levels: Tensor, size: tuple[int, int]) -> Instances:
        """The proposals of an image."""
        finite = torch.isfinite(boxes.tensor).all(dim=1) & torch.isfinite(scores)
        if not finite.all():
            boxes, scores, levels = boxes[finite], scores[finite], levels[finite]
        boxes.clip(size)
        good = boxes.nonempty(threshold=self.min_box_size).nonzero().squeeze(1)
        order = good[scores[good].argsort(descending=True, stable=True)]
        kept = order[self._suppressed(boxes.tensor[order], scores[order], levels[order])]
        found = Instances(size)
        found.proposal_boxes, found.objectness_logits = boxes[kept], scores[kept]
        return found

    def _suppressed(self, boxes: Tensor, scores: Tensor, levels: Tensor) -> Tensor:
        """Which of the boxes, best first, are kept: as many as are wanted, each level by itself."""
        wanted = self.post_nms_topk[False]
        looked = _FIRST_LOOK * wanted
        while True:
            found = _keep(boxes[:looked], scores[:looked], levels[:looked], self.nms_thresh)
            if len(found) >= wanted or looked >= len(boxes):
                return found[:wanted]
            looked *= 2


def _keep(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float) -> Tensor:
    """What non-maximum suppression keeps of boxes, best first, when each level is by itself."""
    if len(names := levels.unique()) < 2:
        return nms(boxes, scores, threshold)
    parts = [(levels == level).nonzero().squeeze(1) for level in names]
    return torch.cat([part[nms(boxes[part], scores[part], threshold)] for part in parts]).sort().values


class FrugalOutputLayers(FastRCNNOutputLayers):
    """detectron2's predictor, which decodes the boxes alone whose scores are high enough; detections are the same."""

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Arguments and results are those of detectron2's."""
        counts = [len(proposal) for proposal in proposals]
        deltas = predictions[1].split(counts)
        found = [
            self._of_image(*image)
            for image in zip(self.predict_probs(predictions, proposals), deltas, proposals, strict=True)
        ]
        return [instances for instances, _ in found], [rows for _, rows in found]

    def _of_image(self, scores: Tensor, deltas: Tensor, proposals: Instances) -> tuple[Instances, Tensor]:
        """Detections of an image, and of which proposals they are."""
        finite = torch.isfinite(scores).all(dim=1) & torch.isfinite(deltas).all(dim=1)
        rows, classes = ((scores[:, :-1] > self.test_score_thresh) & finite[:, None]).nonzero().unbind(1)
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
        chosen = deltas[rows, classes if deltas.shape[1] > 1 else 0]
        boxes = Boxes(self.box2box_transform.apply_deltas(chosen, proposals.proposal_boxes.tensor[rows]))
        boxes.clip(proposals.image_size)
        scores = scores[rows, classes]
        kept = batched_nms(boxes.tensor, scores, classes, self.test_nms_thresh)
        if self.test_topk_per_image >= 0:
            kept = kept[: self.test_topk_per_image]
        found = Instances(proposals.image_size)
        found.pred_boxes, found.scores, found.pred_classes = boxes[kept], scores[kept], classes[kept]
        return found, rows[kept]


_FRUGAL: dict[type[nn.Module], type[nn.Module]] = {RPN: FrugalRPN, FastRCNNOutputLayers: FrugalOutputLayers}
