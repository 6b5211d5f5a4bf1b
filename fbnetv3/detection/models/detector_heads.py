"""The RPN head and the box head of an architecture (Sec. 4.3)."""

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

from fbnetv3.arch import ArchDef, get_arch, with_same_padding
from fbnetv3.arch.detector_cost import detector_parts
from fbnetv3.detection.models.fbnetv3_backbone import arch_arguments
from fbnetv3.detection.models.norm_layers import Norm, explain_batchnorm_error, norm_layer
from fbnetv3.detection.models.released_names import ReleasedNamesMixin
from fbnetv3.errors import UsageError
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.weights import load_trunk

logger = logging.getLogger(__name__)


class BlockRPNHead(nn.Module):
    """Blocks, then 1x1 convolutions of `channels` for objectness and box deltas; shared by all feature maps."""

    def __init__(self, blocks: nn.Module, channels: int, num_anchors: int, box_dim: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, 1)
        # Initialize as detectron2's StandardRPNHead does
        for layer in (self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3`, the anchor generator and the feature maps' shapes."""
        arguments = arch_arguments(cfg)
        anchor_generator = build_anchor_generator(cfg, input_shape)
        # One head is shared by all feature maps
        channels = {shape.channels for shape in input_shape}
        anchor_counts = set(anchor_generator.num_anchors)
        if len(channels) > 1 or len(anchor_counts) > 1:
            raise UsageError(
                "MODEL.RPN.IN_FEATURES must all have the same number of channels and the same number of anchors per "
                "pixel"
            )
        return {
            "arch": arguments["arch"],
            "in_channels": channels.pop(),
            "num_anchors": anchor_counts.pop(),
            "box_dim": anchor_generator.box_dim,
            "num_blocks": cfg.MODEL.FBNETV3.RPN_BLOCKS or None,
            "norm": arguments["norm"],
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict logits (N, num_anchors, H, W) and deltas (N, num_anchors * box_dim, H, W) for each feature map."""
        hidden = []
        for x in features:
            with explain_batchnorm_error(x):
                hidden.append(self.blocks(x))
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@RPN_HEAD_REGISTRY.register()
class FBNetV3RPNHead(ReleasedNamesMixin, BlockRPNHead):
    """An RPN head whose blocks are those of the last row of the C4 trunk.

    Args:
        arch: a registered name, the path of an architecture's YAML file, or an `ArchDef`.
        in_channels: channels of each feature map.
        num_anchors: anchors per pixel of a feature map.
        box_dim: parameters of a box; 4 for axis-aligned boxes.
        num_blocks: number of blocks; default: as many as in the trunk's last row.
        norm: name or constructor of the norm; see `FBNetV3Backbone`.
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
        rpn_arch = detector_parts(get_arch(arch), num_blocks).rpn_head
        blocks = Trunk(rpn_arch, in_channels, norm_layer=norm_layer(norm))
        super().__init__(blocks, rpn_arch.out_channels, num_anchors, box_dim)


class BlockBoxHead(nn.Module):
    """Blocks, applied to each proposal, and global average pooling of the resulting `channels`."""

    def __init__(self, blocks: nn.Module, channels: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output_shape = ShapeSpec(channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled proposals (R, C, H, W) to features (R, channels)."""
        return self.pool(self.blocks(x)).flatten(1)


@ROI_BOX_HEAD_REGISTRY.register()
class FBNetV3BoxHead(ReleasedNamesMixin, BlockBoxHead):
    """A box head whose blocks are those of an architecture after its C4 trunk.

    Args:
        input_shape: channels of the pooled proposals.
        arch: a registered name, the path of an architecture's YAML file, or an `ArchDef`.
        norm: name or constructor of the norm; see `FBNetV3Backbone`.
        weights: a classifier's weights to initialize from; "" initializes randomly. They fit only if proposals are
            pooled from the C4 trunk of the same architecture.
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
        arch = get_arch(arch)
        parts = detector_parts(arch)
        blocks = Trunk(parts.box_head, input_shape.channels, norm_layer=norm_layer(norm))
        # The classifier's blocks fit only after its own trunk, not after an FPN
        if weights and input_shape.channels == parts.trunk.out_channels:
            classifier = with_same_padding(arch, name=arch.name)
            load_trunk(blocks, weights, classifier=classifier, skip=len(parts.trunk.blocks()))
        elif weights:
            logger.warning(
                "the box head is randomly initialized: its input has %d channels, the C4 trunk %d",
                input_shape.channels,
                parts.trunk.out_channels,
            )
        super().__init__(blocks, blocks.arch.out_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3`."""
        return {"input_shape": input_shape, **arch_arguments(cfg)}
