"""Feature pyramids on our backbones, for Faster and Mask R-CNN and for RetinaNet."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

from fbnetv3.detection.models.fbnetv3_backbone import FBNetV3Backbone
from fbnetv3.detection.models.norm_layers import norm_layer


@BACKBONE_REGISTRY.register()
def build_fbnetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A pyramid on the maps of `MODEL.FPN.IN_FEATURES`, and a max-pooled level on top.

    As in detectron2's own, the keys are those of `MODEL.FPN`; "res2" to "res5" give p2 to p5, and p6.
    """
    pool = LastLevelMaxPool()
    bottom_up = FBNetV3Backbone(cfg, input_shape, out_features=cfg.MODEL.FPN.IN_FEATURES)
    pool.in_feature = f"p{cfg.MODEL.FPN.IN_FEATURES[-1].removeprefix('res')}"
    return _pyramid(cfg, bottom_up, pool)


@BACKBONE_REGISTRY.register()
def build_retinanet_fbnetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """RetinaNet's pyramid on the maps of `MODEL.FPN.IN_FEATURES`, with two convolutions on top of the last map."""
    bottom_up = FBNetV3Backbone(cfg, input_shape, out_features=cfg.MODEL.FPN.IN_FEATURES)
    deepest = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[deepest].channels
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, deepest))


def _pyramid(cfg: CfgNode, bottom_up: FBNetV3Backbone, top_block: nn.Module) -> FPN:
    norm = cfg.MODEL.FPN.NORM
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_layer(norm, cfg.MODEL.DEVICE) if norm else "",
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
