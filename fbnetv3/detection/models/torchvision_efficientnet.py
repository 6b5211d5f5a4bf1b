"""torchvision's EfficientNets as C4 detectors, so that their ImageNet weights compare with ours (Sec. 4.3)."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, cast

import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, Backbone
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from torch import Tensor, nn

from fbnetv3.detection.detection_config import classifier_weights, settings
from fbnetv3.detection.models.detector_heads import head_arguments
from fbnetv3.detection.models.norm_layers import Norm, norm_layer
from fbnetv3.errors import UsageError, WeightsError, suggest
from fbnetv3.modeling.blocks import init_weights
from fbnetv3.modeling.weights import read_state_dict

PREFIX = "torchvision/"
# torchvision's stages: the stem is 0, those with strides of two are 2, 3, 4 and 6, and 8 belongs to the classifier.
_C4, _END = 5, 7


class EfficientNetBackbone(Backbone):
    """The stages of stride 2 to 16 of torchvision's EfficientNet; its one map is "res4".

    Args:
        arch: "torchvision/efficientnet_b0" to "torchvision/efficientnet_b7".
        norm: as for `FBNetV3Backbone`.
        weights: a file or URL of torchvision's weights to start from; "" starts afresh.

    Raises:
        UsageError: an unknown network.
        WeightsError: the weights cannot be had or do not fit.
    """

    @configurable
    def __init__(self, *, arch: str, norm: Norm = "BN", weights: str | os.PathLike = "") -> None:
        super().__init__()
        self.stages = _stages(arch, norm)[: _C4 + 1]
        if weights:
            _load(self.stages, weights)
        self._out_features = ["res4"]
        self._out_feature_channels = {"res4": cast("Any", self.stages[-1])[-1].out_channels}
        self._out_feature_strides = {"res4": 16}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3`."""
        if input_shape.channels != 3:
            raise UsageError(f"torchvision's EfficientNets take 3 channels, not {input_shape.channels}")
        if cfg.MODEL.BACKBONE.FREEZE_AT:
            raise UsageError("torchvision's EfficientNets are trained whole: set MODEL.BACKBONE.FREEZE_AT to 0")
        own = settings(cfg)
        return {
            "arch": own.ARCH,
            "norm": norm_layer(own.NORM, cfg.MODEL.DEVICE),
            "weights": classifier_weights(cfg),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"res4": (N, C, ceil(H / 16), ceil(W / 16))}."""
        return {"res4": self.stages(x)}


@BACKBONE_REGISTRY.register()
def build_efficientnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetBackbone:
    """The backbone of a C4 detector: `MODEL.BACKBONE.NAME: build_efficientnet_backbone`."""
    return EfficientNetBackbone(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class EfficientNetRPNHead(nn.Module):
    """As many blocks as the last stage of the C4 trunk has, all like its last, then 1x1 convolutions.

    Args:
        arch, norm: as for `EfficientNetBackbone`.
        num_anchors: anchors at each place of the map.
        box_dim: numbers that describe a box.
        num_blocks: blocks; default: as many as the stage has.
    """

    @configurable
    def __init__(
        self, *, arch: str, num_anchors: int, box_dim: int = 4, num_blocks: int | None = None, norm: Norm = "BN"
    ) -> None:
        super().__init__()
        stage: Any = _stages(arch, norm)[_C4]
        count = len(stage) if num_blocks is None else num_blocks
        self.blocks = nn.Sequential(*(copy.deepcopy(stage[-1]) for _ in range(count)))
        init_weights(self.blocks)
        self.objectness_logits = nn.Conv2d(stage[-1].out_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(stage[-1].out_channels, num_anchors * box_dim, 1)
        for layer in (self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3` and the anchor generator."""
        arguments = head_arguments(cfg, input_shape)
        del arguments["in_channels"]
        return arguments

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) to, for each, logits (N, A, H, W) and deltas (N, A * box_dim, H, W)."""
        hidden = [self.blocks(feature) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@ROI_BOX_HEAD_REGISTRY.register()
class EfficientNetBoxHead(nn.Module):
    """The stages of stride 32 on each proposal, and a global average.

    Args:
        arch, norm, weights: as for `EfficientNetBackbone`.
    """

    @configurable
    def __init__(self, *, arch: str, norm: Norm = "BN", weights: str | os.PathLike = "") -> None:
        super().__init__()
        self.blocks = _stages(arch, norm)[_C4 + 1 : _END + 1]
        if weights:
            _load(self.blocks, weights)
        self.pool = nn.AdaptiveAvgPool2d(1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3`."""
        own = settings(cfg)
        return {
            "arch": own.ARCH,
            "norm": norm_layer(own.NORM, cfg.MODEL.DEVICE),
            "weights": classifier_weights(cfg),
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels that the predictor gets."""
        return ShapeSpec(channels=cast("Any", self.blocks[-1])[-1].out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Proposals' maps (R, C, H, W) to features (R, channels)."""
        return self.pool(self.blocks(x)).flatten(1)


def _stages(arch: str, norm: Norm) -> nn.Sequential:
    """The stages of a network with fresh weights.

    Raises:
        UsageError: an unknown network.
    """
    known = [f"{PREFIX}efficientnet_b{n}" for n in range(8)]
    if arch not in known:
        raise UsageError(
            f"MODEL.FBNETV3.ARCH {arch!r} is no EfficientNet of torchvision's: {suggest(str(arch), known)}"
        )
    return torchvision.models.get_model(arch.removeprefix(PREFIX), weights=None, norm_layer=norm_layer(norm)).features


def _load(stages: nn.Sequential, source: str | os.PathLike) -> None:
    """Load torchvision's weights into some of its stages, which keep their numbers.

    Raises:
        WeightsError: they cannot be had or do not fit.
    """
    wanted, found = list(stages.state_dict()), read_state_dict(source)
    if missing := [key for key in wanted if f"features.{key}" not in found]:
        raise WeightsError(f"{source}: does not fit the network; it lacks {len(missing)} tensors such as {missing[0]}")
    try:
        stages.load_state_dict({key: found[f"features.{key}"] for key in wanted})
    except RuntimeError as error:
        raise WeightsError(f"{source}: does not fit the network; {' '.join(str(error).split())[:300]}") from None
