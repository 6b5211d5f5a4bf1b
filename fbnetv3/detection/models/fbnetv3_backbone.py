"""The trunk of any architecture as a detectron2 backbone: its last map for C4 detectors, or several for a pyramid."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from fbnetv3.arch import ArchDef, get_arch, same_padding
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.detection.detection_config import classifier_weights, settings
from fbnetv3.detection.models.norm_layers import Norm, explained, norm_layer
from fbnetv3.detection.models.released_names import rename_released
from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.weights import load_trunk

logger = logging.getLogger(__name__)


class FBNetV3Backbone(Backbone):
    """The blocks of an architecture up to the deepest map that is asked for (Sec. 4.3).

    Maps are named as in detectron2's ResNets: "res2" to "res5" have strides 4 to 32, and "res1" has stride 2. They
    are (N, C, ceil(H / stride), ceil(W / stride)): depthwise convolutions pad by kernel // 2, in the networks too
    that as classifiers pad some of them less. Their weights fit all the same.

    Args:
        arch: a registered name, the path of an architecture's YAML file, or a definition.
        out_features: names of the maps to return; "res4" is that of a C4 detector.
        norm: "BN", "SyncBN", "FrozenBN", "GN" and so on, or a callable that makes the norm of a number of channels.
        in_channels: channels of the image.
        freeze_at: blocks whose stride is at most 2 ** freeze_at are not trained, and their BatchNorms become
            FrozenBatchNorm2d: 0 for none, 1 for the stem's stride, 2 for "res2" as well.
        weights: a classifier's weights to start from, as `fbnetv3.load_weights` takes them: the authors', timm's or
            those of a training here. "" starts afresh.

    Raises:
        UsageError: an unknown feature or norm, or `freeze_at` below 0.
        WeightsError: the weights cannot be had or do not fit.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: ArchDef | str | os.PathLike,
        out_features: Sequence[str] = ("res4",),
        norm: Norm = "BN",
        in_channels: int = 3,
        freeze_at: int = 0,
        weights: str | os.PathLike = "",
    ) -> None:
        super().__init__()
        defn = get_arch(arch)
        maps = {f"res{stride.bit_length() - 1}": (block, stride) for block, stride in feature_blocks(defn)}
        for name in out_features:
            if name not in maps:
                raise UsageError(f"{defn.name} has no map '{name}': {suggest(name, maps)}")
        if not out_features:
            raise UsageError(
                f"no map of {defn.name} is asked for: set MODEL.FBNETV3.OUT_FEATURES, or for a pyramid "
                "MODEL.FPN.IN_FEATURES"
            )
        if freeze_at < 0:
            raise UsageError(f"MODEL.BACKBONE.FREEZE_AT {freeze_at} is below 0")
        self._out_features = sorted(out_features, key=lambda name: maps[name][1])
        self._out_feature_channels = {name: maps[name][0].spec.out_channels for name in self._out_features}
        self._out_feature_strides = {name: maps[name][1] for name in self._out_features}
        self._taken = {(maps[name][0].stage, maps[name][0].index): name for name in self._out_features}
        last = maps[self._out_features[-1]][0].name
        trunk = Trunk(same_padding(defn, name=defn.name), in_channels, norm_layer=norm_layer(norm), last=last)
        if weights:
            load_trunk(trunk, weights)
        self.arch, self.stages = defn, trunk.stages
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from `MODEL.FBNETV3` and `MODEL.BACKBONE.FREEZE_AT`."""
        own, freeze_at = settings(cfg), cfg.MODEL.BACKBONE.FREEZE_AT
        if freeze_at > 0 and not (own.WEIGHTS or cfg.MODEL.WEIGHTS):
            logger.warning(
                "MODEL.BACKBONE.FREEZE_AT %d freezes blocks at random weights, unless you load some yourself: set it "
                "to 0, or MODEL.WEIGHTS or MODEL.FBNETV3.WEIGHTS",
                freeze_at,
            )
        return {
            "arch": own.ARCH,
            "out_features": own.OUT_FEATURES,
            "norm": norm_layer(own.NORM, cfg.MODEL.DEVICE),
            "in_channels": input_shape.channels,
            "freeze_at": freeze_at,
            "weights": classifier_weights(cfg),
        }

    def _freeze(self, freeze_at: int) -> None:
        stride = 1
        stages: Any = self.stages
        for block in self.arch.blocks():
            stride *= block.spec.stride
            if stride > 2**freeze_at or freeze_at == 0:
                break
            if block.stage < len(stages) and block.index < len(stages[block.stage]):
                stage = stages[block.stage]
                for parameter in stage[block.index].parameters():
                    parameter.requires_grad = False
                stage[block.index] = FrozenBatchNorm2d.convert_frozen_batchnorm(stage[block.index])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) to the maps by name, finest first.

        Raises:
            UsageError: in training, one image so small that BatchNorm has one value a channel.
        """
        return explained(self._maps, x) if self.training else self._maps(x)

    def _maps(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage):  # type: ignore[arg-type, var-annotated]
                x = block(x)
                if (s, b) in self._taken:
                    maps[self._taken[s, b]] = x
        return maps

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        rename_released(state_dict, prefix, "trunk")
        super()._load_from_state_dict(state_dict, prefix, *args)


@BACKBONE_REGISTRY.register()
def build_fbnetv3_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The backbone of a C4 detector: `MODEL.BACKBONE.NAME: build_fbnetv3_backbone`."""
    return FBNetV3Backbone(cfg, input_shape)
