"""detectron2 backbone from the trunk of any architecture: one feature map for C4 detectors, several for FPNs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from fbnetv3.arch import ArchDef, get_arch, with_same_padding
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.detection.detection_config import classifier_weights, fbnetv3_section
from fbnetv3.detection.models.norm_layers import Norm, explain_batchnorm_error, norm_layer
from fbnetv3.detection.models.released_names import rename_released_tensors
from fbnetv3.errors import UsageError, suggest
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.weights import load_trunk

logger = logging.getLogger(__name__)


class FBNetV3Backbone(Backbone):
    """The blocks of an architecture up to the deepest requested feature map (Sec. 4.3).

    Feature maps are named as in detectron2's ResNets: "res2" to "res5" have strides 4 to 32, and "res1" has stride 2.
    They have shape (N, C, ceil(H / stride), ceil(W / stride)): depthwise convolutions pad by kernel // 2, even in
    architectures that pad less as classifiers. The classifiers' weights fit nevertheless.

    Args:
        arch: a registered name, the path of an architecture's YAML file, or an `ArchDef`.
        out_features: names of the feature maps to return; C4 detectors use "res4".
        norm: "BN", "SyncBN", "FrozenBN", "GN" and so on, or a callable that builds the norm of a number of channels.
        in_channels: channels of the image.
        freeze_at: freeze blocks whose stride is at most 2 ** freeze_at, and turn their BatchNorms into
            FrozenBatchNorm2d: 0 freezes none, 1 freezes those of the stem's stride, 2 also "res2".
        weights: a classifier's weights to initialize from: the authors', timm's or this project's; see
            `fbnetv3.load_weights`. "" initializes randomly.
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
        self.arch = get_arch(arch)
        # Name -> last block and stride of each feature map
        features = {f"res{stride.bit_length() - 1}": (block, stride) for block, stride in feature_blocks(self.arch)}
        for name in out_features:
            if name not in features:
                raise UsageError(f"{self.arch.name} has no feature map '{name}': {suggest(name, features)}")
        if not out_features:
            raise UsageError(
                f"no feature map of {self.arch.name} is requested: set MODEL.FBNETV3.OUT_FEATURES, or "
                "MODEL.FPN.IN_FEATURES for an FPN"
            )
        if freeze_at < 0:
            raise UsageError(f"MODEL.BACKBONE.FREEZE_AT {freeze_at} is negative")

        # Attributes that detectron2's Backbone.output_shape reads
        self._out_features = sorted(out_features, key=lambda name: features[name][1])
        self._out_feature_channels = {}
        self._out_feature_strides = {}
        # (stage, index) of the block -> name of the feature map that it computes
        self._feature_names = {}
        for name in self._out_features:
            block, stride = features[name]
            self._out_feature_channels[name] = block.spec.out_channels
            self._out_feature_strides[name] = stride
            self._feature_names[block.stage, block.index] = name

        # Blocks after the deepest requested feature map are not built
        padded = with_same_padding(self.arch, name=self.arch.name)
        trunk = Trunk(padded, in_channels, norm_layer=norm_layer(norm), last=block.name)
        if weights:
            load_trunk(trunk, weights)
        self.stages = trunk.stages
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3` and `MODEL.BACKBONE.FREEZE_AT`."""
        section = fbnetv3_section(cfg)
        freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
        if freeze_at > 0 and not (section.WEIGHTS or cfg.MODEL.WEIGHTS):
            logger.warning(
                "MODEL.BACKBONE.FREEZE_AT %d freezes randomly initialized blocks unless you load weights yourself: "
                "set it to 0, or set MODEL.WEIGHTS or MODEL.FBNETV3.WEIGHTS",
                freeze_at,
            )
        return {
            "arch": section.ARCH,
            "out_features": section.OUT_FEATURES,
            "norm": norm_layer(section.NORM, cfg.MODEL.DEVICE),
            "in_channels": input_shape.channels,
            "freeze_at": freeze_at,
            "weights": classifier_weights(cfg),
        }

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at == 0:
            return
        stages: Any = self.stages
        stride = 1
        for block in self.arch.blocks():
            stride *= block.spec.stride
            if stride > 2**freeze_at:
                break
            # Blocks beyond the deepest requested feature map were not built
            if block.stage < len(stages) and block.index < len(stages[block.stage]):
                stage = stages[block.stage]
                stage[block.index].requires_grad_(False)
                stage[block.index] = FrozenBatchNorm2d.convert_frozen_batchnorm(stage[block.index])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, in_channels, H, W) to feature maps by name, finest first.

        Raises:
            UsageError: in training, a single image so small that BatchNorm has one value per channel.
        """
        features = {}
        with explain_batchnorm_error(x):
            for stage_index, stage in enumerate(self.stages):
                for block_index, block in enumerate(stage):  # type: ignore[arg-type, var-annotated]
                    x = block(x)
                    if name := self._feature_names.get((stage_index, block_index)):
                        features[name] = x
        return features

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        rename_released_tensors(state_dict, prefix, "trunk")
        super()._load_from_state_dict(state_dict, prefix, *args)


@BACKBONE_REGISTRY.register()
def build_fbnetv3_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build the backbone of a C4 detector: `MODEL.BACKBONE.NAME: build_fbnetv3_backbone`."""
    return FBNetV3Backbone(cfg, input_shape)
