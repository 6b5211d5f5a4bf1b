"""detectron2 backbones from the trunk of any architecture: one feature map for C4 detectors, several for FPNs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from fbnetv3.arch import ArchDef, get_arch, with_same_padding
from fbnetv3.arch.arch_files import arch_from_dict
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.detection.models.norm_layers import Norm, explain_batchnorm_error, norm_layer
from fbnetv3.detection.models.released_names import ReleasedNamesMixin
from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.weights import load_trunk

logger = logging.getLogger(__name__)


def config_arch(cfg: CfgNode) -> ArchDef | str:
    """Return the architecture of `MODEL.FBNETV3.ARCH`; its name if only torchvision defines it.

    Raises:
        ArchError: the file or the definition in the key is missing or invalid.
    """
    arch = _named_or_defined(cfg.MODEL.FBNETV3.ARCH)
    try:
        return get_arch(arch)
    except UnknownNameError:
        return str(arch)


def arch_name(cfg: CfgNode) -> str:
    """Return the name of the architecture of `MODEL.FBNETV3.ARCH`."""
    arch = config_arch(cfg)
    return arch if isinstance(arch, str) else arch.name


def _named_or_defined(arch: str) -> ArchDef | str:
    """Return a name or path unchanged, and the architecture of a definition, which configs in checkpoints have."""
    return arch_from_dict(yaml.safe_load(arch)) if "\n" in arch else arch


def arch_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments "arch", "norm" and "weights" from `MODEL.FBNETV3`."""
    if "FBNETV3" not in cfg.MODEL:
        raise UsageError(
            "the config has no MODEL.FBNETV3: call fbnetv3.detection.add_fbnetv3_config(cfg) before merging files"
        )
    section = cfg.MODEL.FBNETV3
    return {
        "arch": _named_or_defined(section.ARCH),
        "norm": norm_layer(section.NORM, cfg.MODEL.DEVICE),
        # A detector's weights will replace all of a classifier's
        "weights": "" if cfg.MODEL.WEIGHTS else section.WEIGHTS,
    }


class FBNetV3Backbone(ReleasedNamesMixin, Backbone):
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
        features = {
            f"res{stride.bit_length() - 1}": (block, stride) for block, stride in feature_blocks(self.arch)
        }
        if not out_features or not features.keys() >= set(out_features):
            raise UsageError(
                f"{self.arch.name} has the feature maps {', '.join(features)}, not {list(out_features)}: set "
                "MODEL.FBNETV3.OUT_FEATURES, or MODEL.FPN.IN_FEATURES for an FPN, to some of them"
            )
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
        last, _ = features[self._out_features[-1]]
        padded = with_same_padding(self.arch, name=self.arch.name)
        trunk = Trunk(padded, in_channels, norm_layer=norm_layer(norm), last=last.name)
        if weights:
            load_trunk(trunk, weights)
        self.stages = trunk.stages
        if freeze_at > 0:
            self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments from `MODEL.FBNETV3` and `MODEL.BACKBONE.FREEZE_AT`."""
        arguments = arch_arguments(cfg)
        freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
        if freeze_at > 0 and not (arguments["weights"] or cfg.MODEL.WEIGHTS):
            logger.warning(
                "MODEL.BACKBONE.FREEZE_AT %d freezes randomly initialized blocks unless you load weights yourself: "
                "set it to 0, or set MODEL.WEIGHTS or MODEL.FBNETV3.WEIGHTS",
                freeze_at,
            )
        return {
            **arguments,
            "out_features": cfg.MODEL.FBNETV3.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "freeze_at": freeze_at,
        }

    def _freeze(self, freeze_at: int) -> None:
        stages: Any = self.stages
        stride = 1
        for block in self.arch.blocks():
            stride *= block.spec.stride
            is_built = block.stage < len(stages) and block.index < len(stages[block.stage])
            if stride > 2**freeze_at or not is_built:
                break
            stage = stages[block.stage]
            stage[block.index].requires_grad_(False)
            stage[block.index] = FrozenBatchNorm2d.convert_frozen_batchnorm(stage[block.index])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, in_channels, H, W) to feature maps by name, finest first."""
        features = {}
        with explain_batchnorm_error(x):
            for stage_index, stage in enumerate(self.stages):
                for block_index, block in enumerate(stage):  # type: ignore[arg-type, var-annotated]
                    x = block(x)
                    if name := self._feature_names.get((stage_index, block_index)):
                        features[name] = x
        return features


@BACKBONE_REGISTRY.register()
def build_fbnetv3_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build the backbone of a C4 detector: `MODEL.BACKBONE.NAME: build_fbnetv3_backbone`."""
    return FBNetV3Backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_fbnetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN on the feature maps of `MODEL.FPN.IN_FEATURES`, with a max-pooled level on top.

    The config keys are those of detectron2's FPNs, `MODEL.FPN`. "res2" to "res5" give p2 to p5, and pooling p6.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    pool = LastLevelMaxPool()
    # detectron2 pools p5, whichever level is the last
    pool.in_feature = in_features[-1].replace("res", "p")
    return _build_fpn(cfg, FBNetV3Backbone(cfg, input_shape, out_features=in_features), pool)


@BACKBONE_REGISTRY.register()
def build_retinanet_fbnetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build RetinaNet's FPN on the feature maps of `MODEL.FPN.IN_FEATURES`, with p6 and p7 convolved from the last."""
    in_features = cfg.MODEL.FPN.IN_FEATURES
    trunk = FBNetV3Backbone(cfg, input_shape, out_features=in_features)
    channels = trunk.output_shape()[in_features[-1]].channels
    return _build_fpn(cfg, trunk, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_features[-1]))


def _build_fpn(cfg: CfgNode, trunk: FBNetV3Backbone, top_block: nn.Module) -> FPN:
    norm = cfg.MODEL.FPN.NORM
    return FPN(
        bottom_up=trunk,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_layer(norm, cfg.MODEL.DEVICE) if norm else "",
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
