"""A two-stage detector from an architecture: which blocks are its trunk, RPN head and box head, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fbnetv3.arch.complexity import Cost, avg_pool, conv
from fbnetv3.arch.compound_scaling import same_padding
from fbnetv3.arch.definition import ArchDef, Row, Stage, feature_blocks
from fbnetv3.arch.network_cost import NetworkCost, cost_of
from fbnetv3.errors import UsageError

# Table 5 of the paper: a detector's architecture, its parameters in millions and its MACs in thousand millions.
TABLE_5 = {
    "efficientnet_b0_det": (8.0, 3.6),
    "fbnetv3_a_det": (5.3, 2.9),
    "efficientnet_b1_det": (13.3, 5.6),
    "fbnetv3_e_det": (10.6, 5.3),
}


@dataclass(frozen=True)
class DetectorParts:
    """The parts of a detector of the C4 kind (Sec. 4.3), each an architecture of its own.

    Attributes:
        trunk: all blocks before the network's last stride of two; its map has stride 16, or 8 for small images.
        rpn_head: the trunk's last row once more, with stride one.
        box_head: the blocks from the last stride of two on, without the classifier's mbpool.
        stride: stride of the trunk's map.
    """

    trunk: ArchDef
    rpn_head: ArchDef
    box_head: ArchDef
    stride: int


def is_detection_variant(defn: ArchDef) -> bool:
    """Whether an architecture is of the released detectors' blocks, and so meant for detectors alone."""
    return any(row.block == "mbconv_det" for stage in defn.stages for row in stage.rows)


def detector_parts(defn: ArchDef, rpn_blocks: int | None = None) -> DetectorParts:
    """Cut an architecture into the parts of a detector.

    Depthwise convolutions pad by kernel // 2 in all parts, so that maps have the sizes that detectors count on.

    Args:
        defn: a detection variant, a classifier's architecture or a searched one.
        rpn_blocks: blocks of the RPN head; default: as many as the trunk's last row has.

    Raises:
        UsageError: the network has fewer than two strides to cut between, or `rpn_blocks` is below 1.
    """
    features = feature_blocks(defn)
    if len(features) < 2:
        raise UsageError(f"{defn.name} has blocks at one stride alone: a detector needs a trunk and a box head")
    if rpn_blocks is not None and rpn_blocks < 1:
        raise UsageError(f"an RPN head of {rpn_blocks} blocks: at least 1")
    last, stride = features[-2]
    trunk, box_head = [], []
    for s, stage in enumerate(same_padding(defn).stages):
        rows = [row for row in stage.rows if row.block != "mbpool"]
        cut = len(rows) if s < last.stage else last.row + 1 if s == last.stage else 0
        trunk.append(rows[:cut])
        box_head.append(rows[cut:])
    last_row = trunk[last.stage][-1]
    rpn_row = replace(last_row, stride=1, repeat=last_row.repeat if rpn_blocks is None else rpn_blocks)
    return DetectorParts(
        _part(defn, "trunk", trunk), _part(defn, "rpn_head", [[rpn_row]]), _part(defn, "box_head", box_head), stride
    )


def _part(defn: ArchDef, what: str, stages: list[list[Row]]) -> ArchDef:
    kept = tuple(Stage(tuple(rows)) for rows in stages if rows)
    return ArchDef(f"{defn.name}.{what}", kept, defn.resolution, defn.resize, defn.source)


@dataclass(frozen=True)
class DetectorCost:
    """What a detector of the C4 kind costs for one image.

    Attributes:
        trunk, rpn_head: for the whole image.
        box_head, predictor: for one proposal; the predictor's are two linear layers.
        proposals: how many of them there are.
    """

    trunk: NetworkCost
    rpn_head: Cost
    box_head: Cost
    predictor: Cost
    proposals: int

    @property
    def macs_conv(self) -> int:
        """Multiply-adds of all convolutions, which Table 5 rounds; the predictor's linear layers are not among them."""
        return self.trunk.macs_conv + self.rpn_head.macs_conv + self.proposals * self.box_head.macs_conv

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(part.params for part in (self.trunk, self.rpn_head, self.box_head, self.predictor))


def detector_cost(
    defn: ArchDef,
    height: int = 384,
    width: int = 640,
    *,
    proposals: int = 75,
    num_classes: int = 80,
    anchors: int = 15,
    pooled: int = 6,
    rpn_blocks: int | None = None,
) -> DetectorCost:
    """Cost of the Faster R-CNN C4 detector of an architecture; the defaults are Table 5's.

    Args:
        defn: the architecture.
        height, width: of the image, in pixels.
        proposals: regions of an image that the box head sees.
        num_classes: classes without the background.
        anchors: anchors at each place of the map.
        pooled: side of a proposal's map, in places.
        rpn_blocks: as for `detector_parts`.

    Raises:
        UsageError: the network cannot be cut into a detector, or the image is too small.
    """
    parts = detector_parts(defn, rpn_blocks)
    trunk = cost_of(parts.trunk, (height, width), num_classes=0)
    last = trunk.blocks[-1]
    h, w, channels = last.height, last.width, last.block.spec.out_channels
    rpn_head = cost_of(parts.rpn_head, (h, w), num_classes=0, in_chans=channels)
    hidden = parts.rpn_head.out_channels
    rpn_total = rpn_head + conv(h, w, hidden, anchors, bias=True) + conv(h, w, hidden, 4 * anchors, bias=True)
    box_head = cost_of(parts.box_head, (pooled, pooled), num_classes=0, in_chans=channels)
    end = box_head.blocks[-1]
    features = parts.box_head.out_channels
    box_total = box_head + avg_pool(end.height, end.width, features)
    predictor = conv(1, 1, features, num_classes + 1, bias=True) + conv(1, 1, features, 4 * num_classes, bias=True)
    return DetectorCost(trunk, rpn_total, box_total, predictor, proposals)
