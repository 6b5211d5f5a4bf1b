"""FPN backbones: for Faster and Mask R-CNN, and for RetinaNet."""

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
    """Build an FPN on the feature maps of `MODEL.FPN.IN_FEATURES`, with a max-pooled level on top.

    The config keys are those of detectron2's FPNs, `MODEL.FPN`. "res2" to "res5" give p2 to p5, and pooling p6.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    bottom_up = FBNetV3Backbone(cfg, input_shape, out_features=in_features)
    top_level = in_features[-1].removeprefix("res")
    # detectron2 pools p5, whichever level is the last
    pool = LastLevelMaxPool()
    pool.in_feature = f"p{top_level}"
    return _build_fpn(cfg, bottom_up, pool)


@BACKBONE_REGISTRY.register()
def build_retinanet_fbnetv3_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build RetinaNet's FPN on the feature maps of `MODEL.FPN.IN_FEATURES`, with p6 and p7 convolved from the last."""
    in_features = cfg.MODEL.FPN.IN_FEATURES
    bottom_up = FBNetV3Backbone(cfg, input_shape, out_features=in_features)
    top_feature = in_features[-1]
    channels = bottom_up.output_shape()[top_feature].channels
    top_levels = LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, top_feature)
    return _build_fpn(cfg, bottom_up, top_levels)


def _build_fpn(cfg: CfgNode, bottom_up: FBNetV3Backbone, top_block: nn.Module) -> FPN:
    norm = cfg.MODEL.FPN.NORM
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_layer(norm, cfg.MODEL.DEVICE) if norm else "",
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
