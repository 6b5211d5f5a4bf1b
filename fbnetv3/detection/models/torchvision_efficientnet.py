"""torchvision's EfficientNets as C4 detectors, a baseline that starts from ImageNet weights (Sec. 4.3)."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, Backbone
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from torch import Tensor, nn

from fbnetv3.detection.models.detector_heads import BlockBoxHead, BlockRPNHead
from fbnetv3.detection.models.fbnetv3_backbone import arch_arguments
from fbnetv3.detection.models.norm_layers import Norm, norm_layer
from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling.blocks import init_weights
from fbnetv3.modeling.checkpoint_contents import StateDict, prefixes_of
from fbnetv3.modeling.weights import load_best, read_candidates

_ARCHS = [f"torchvision/efficientnet_b{n}" for n in range(8)]
# Indices into torchvision's `features`: 0 is the stem, 2, 3, 4 and 6 halve the resolution, 8 belongs to the classifier
_LAST_TRUNK_STAGE = 5
_LAST_BOX_HEAD_STAGE = 7


class EfficientNetBackbone(Backbone):
    """The stages of torchvision's EfficientNet up to stride 16; the only feature map is "res4".

    Args:
        arch: "torchvision/efficientnet_b0" to "torchvision/efficientnet_b7".
        norm: name or constructor of the norm; see `FBNetV3Backbone`.
        weights: a file or URL of torchvision's weights to initialize from; "" initializes randomly.
    """

    @configurable
    def __init__(self, *, arch: str, norm: Norm = "BN", weights: str | os.PathLike = "") -> None:
        super().__init__()
        stages: Any = _build_stages(arch, norm)[: _LAST_TRUNK_STAGE + 1]
        _load_stages(stages, weights)
        self.stages = stages
        self._out_features = ["res4"]
        self._out_feature_channels = {"res4": stages[-1][-1].out_channels}
        self._out_feature_strides = {"res4": 16}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3`."""
        if cfg.MODEL.BACKBONE.FREEZE_AT:
            raise UsageError(
                "torchvision's EfficientNets cannot be frozen: set MODEL.BACKBONE.FREEZE_AT to 0"
            )
        return arch_arguments(cfg)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to {"res4": (N, C, ceil(H / 16), ceil(W / 16))}."""
        return {"res4": self.stages(x)}


@BACKBONE_REGISTRY.register()
def build_efficientnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetBackbone:
    """Build the backbone of a C4 detector: `MODEL.BACKBONE.NAME: build_efficientnet_backbone`."""
    return EfficientNetBackbone(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class EfficientNetRPNHead(BlockRPNHead):
    """An RPN head of copies of the C4 trunk's last block, by default as many as its last stage has blocks.

    Args:
        arch: "torchvision/efficientnet_b0" to "torchvision/efficientnet_b7".
        num_anchors: anchors per pixel of the feature map.
        box_dim: parameters of a box; 4 for axis-aligned boxes.
        num_blocks: number of blocks; default: as many as in the trunk's last stage.
        norm: name or constructor of the norm; see `FBNetV3Backbone`.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: str,
        num_anchors: int,
        box_dim: int = 4,
        num_blocks: int | None = None,
        norm: Norm = "BN",
    ) -> None:
        stage: Any = _build_stages(arch, norm)[_LAST_TRUNK_STAGE]
        count = len(stage) if num_blocks is None else num_blocks
        blocks = nn.Sequential(*(copy.deepcopy(stage[-1]) for _ in range(count)))
        init_weights(blocks)
        super().__init__(blocks, stage[-1].out_channels, num_anchors, box_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3` and the anchor generator."""
        arguments = super().from_config(cfg, input_shape)
        del arguments["in_channels"]
        return arguments


@ROI_BOX_HEAD_REGISTRY.register()
class EfficientNetBoxHead(BlockBoxHead):
    """A box head whose blocks are the stages of stride 32.

    Args:
        arch: "torchvision/efficientnet_b0" to "torchvision/efficientnet_b7".
        norm: name or constructor of the norm; see `FBNetV3Backbone`.
        weights: a file or URL of torchvision's weights to initialize from; "" initializes randomly.
    """

    @configurable
    def __init__(self, *, arch: str, norm: Norm = "BN", weights: str | os.PathLike = "") -> None:
        stages: Any = _build_stages(arch, norm)[_LAST_TRUNK_STAGE + 1 : _LAST_BOX_HEAD_STAGE + 1]
        _load_stages(stages, weights)
        super().__init__(stages, stages[-1][-1].out_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3`."""
        return arch_arguments(cfg)


def _build_stages(arch: str, norm: Norm) -> nn.Sequential:
    """Build all stages of a network, randomly initialized."""
    if arch not in _ARCHS:
        raise UsageError(
            f"MODEL.FBNETV3.ARCH {arch!r} must be one of torchvision's EfficientNets: {suggest(str(arch), _ARCHS)}"
        )
    name = arch.removeprefix("torchvision/")
    return torchvision.models.get_model(name, weights=None, norm_layer=norm_layer(norm)).features


def _load_stages(stages: nn.Sequential, source: str | os.PathLike) -> None:
    """Load torchvision's weights into some stages, which keep their indices in `features`; "" loads nothing."""
    if not source:
        return

    def select(state_dict: StateDict) -> StateDict:
        # The file also has the other stages and the classifier
        weights = {key.removeprefix("features."): value for key, value in state_dict.items()}
        return {key: weights[key] for key in stages.state_dict() if key in weights}

    candidates = read_candidates(source, partial(prefixes_of, "features.0.0.weight"))
    load_best(stages, candidates, "the network", select)
