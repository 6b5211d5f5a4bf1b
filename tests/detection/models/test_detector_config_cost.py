"""The cost computed from a detector's config is that of the model that detectron2 builds from it."""

import pytest
from detectron2.modeling import build_model

from fbnetv3.arch.detector_cost import find_detector_config, list_detector_configs, read_detector_config
from fbnetv3.detection import get_config

C4 = [
    name
    for name in list_detector_configs()
    if name.endswith(("C4", "C4_224")) and "torchvision" not in name
]


@pytest.mark.parametrize(
    "name", [name for name in C4 if not name.startswith(("faster_rcnn_fbnetv3_f", "mask"))]
)
def test_parameters_are_those_of_the_model(name):
    settings, cfg = read_detector_config(find_detector_config(name)), get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    assert settings.cost().params == sum(p.numel() for p in build_model(cfg).parameters())
    assert settings.arguments["num_proposals"] == cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    assert settings.arguments["num_classes"] == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert (
        settings.arguments["pooler_resolution"] == cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        and not settings.has_masks
    )


def test_mask_heads_are_noticed():
    assert read_detector_config(find_detector_config("mask_rcnn_fbnetv3_a_C4")).has_masks
