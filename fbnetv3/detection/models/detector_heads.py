"""The RPN head and the box head that belong to an architecture (Sec. 4.3)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, build_anchor_generator
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from torch import Tensor, nn

from fbnetv3.arch import ArchDef, get_arch, same_padding
from fbnetv3.arch.detector_cost import detector_parts
from fbnetv3.detection.detection_config import classifier_weights, settings
from fbnetv3.detection.models.norm_layers import Norm, explained, norm_layer
from fbnetv3.detection.models.released_names import rename_released
from fbnetv3.errors import UsageError
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.weights import load_trunk

logger = logging.getLogger(__name__)


def head_arguments(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
    """Arguments of an RPN head from `MODEL.FBNETV3`, the anchor generator and the maps' shapes.

    Raises:
        UsageError: the maps differ in channels or anchors.
    """
    own, channels = settings(cfg), {shape.channels for shape in input_shape}
    anchors = build_anchor_generator(cfg, input_shape)
    counts = set(anchors.num_anchors)
    if len(channels) > 1 or len(counts) > 1:
        raise UsageError(
            f"maps of {sorted(channels)} channels with {sorted(counts)} anchors at a place: an RPN head needs one "
            "number of each for all of MODEL.RPN.IN_FEATURES"
        )
    return {
        "arch": own.ARCH,
        "in_channels": channels.pop(),
        "num_anchors": counts.pop(),
        "box_dim": anchors.box_dim,
        "num_blocks": own.RPN_BLOCKS or None,
        "norm": norm_layer(own.NORM, cfg.MODEL.DEVICE),
    }


@RPN_HEAD_REGISTRY.register()
class FBNetV3RPNHead(nn.Module):
    """The last row of the C4 trunk once more, then 1x1 convolutions for objectness and boxes; shared by all levels.

    Args:
        arch: a registered name, the path of an architecture's YAML file, or a definition.
        in_channels: channels of each map.
        num_anchors: anchors at each place of a map.
        box_dim: numbers that describe a box, 4 for boxes with upright sides.
        num_blocks: blocks of the row; default: as many as it has.
        norm: as for `FBNetV3Backbone`.

    Raises:
        UsageError: the architecture cannot be cut into a detector.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: ArchDef | str | os.PathLike,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        num_blocks: int | None = None,
        norm: Norm = "BN",
    ) -> None:
        super().__init__()
        part = detector_parts(get_arch(arch), num_blocks).rpn_head
        self.blocks = Trunk(part, in_channels, norm_layer=norm_layer(norm))
        self.objectness_logits = nn.Conv2d(part.out_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(part.out_channels, num_anchors * box_dim, 1)
        for layer in (self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3`, the anchor generator and the maps' shapes."""
        return head_arguments(cfg, input_shape)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) to, for each, logits (N, A, H, W) and deltas (N, A * box_dim, H, W).

        Raises:
            UsageError: in training, one map so small that BatchNorm has one value a channel.
        """
        hidden = [explained(self.blocks, x) if self.training else self.blocks(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        rename_released(state_dict, prefix, "rpn_head")
        super()._load_from_state_dict(state_dict, prefix, *args)


@ROI_BOX_HEAD_REGISTRY.register()
class FBNetV3BoxHead(nn.Module):
    """The blocks of an architecture that follow its C4 trunk, on each proposal, and a global average.

    Args:
        input_shape: channels of a proposal's map.
        arch: a registered name, the path of an architecture's YAML file, or a definition.
        norm: as for `FBNetV3Backbone`.
        weights: a classifier's weights to start from; "" starts afresh. They fit only where proposals come from the
            C4 trunk of the same architecture.

    Raises:
        UsageError: the architecture cannot be cut into a detector.
        WeightsError: the weights cannot be had or do not fit.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        arch: ArchDef | str | os.PathLike,
        norm: Norm = "BN",
        weights: str | os.PathLike = "",
    ) -> None:
        super().__init__()
        defn = get_arch(arch)
        parts = detector_parts(defn)
        self.blocks = Trunk(parts.box_head, input_shape.channels, norm_layer=norm_layer(norm))
        self.pool = nn.AdaptiveAvgPool2d(1)
        if weights and input_shape.channels == parts.trunk.out_channels:
            load_trunk(
                self.blocks, weights, classifier=same_padding(defn, name=defn.name), skip=len(parts.trunk.blocks())
            )
        elif weights:
            logger.warning("the box head starts afresh: its %d channels are not the trunk's", input_shape.channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3`."""
        own = settings(cfg)
        return {
            "input_shape": input_shape,
            "arch": own.ARCH,
            "norm": norm_layer(own.NORM, cfg.MODEL.DEVICE),
            "weights": classifier_weights(cfg),
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels that the predictor gets."""
        return ShapeSpec(channels=self.blocks.arch.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Proposals' maps (R, C, H, W) to features (R, channels)."""
        return self.pool(self.blocks(x)).flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        rename_released(state_dict, prefix, "box_head")
        super()._load_from_state_dict(state_dict, prefix, *args)
