"""The model zoo's detectors."""

import pytest
import torch
from detectron2.modeling import build_model

from fbnetv3 import model_zoo
from fbnetv3.errors import UnknownNameError
from fbnetv3.utils.downloads import cached_path

A = "coco/faster_rcnn_fbnetv3_a_C4_224.yaml"
G = "coco/faster_rcnn_fbnetv3_g_FPN.yaml"
# Box AP on COCO and the file of the weights, as the authors publish them
RELEASED = {A: (22.99, "246823121/model_0479999.pth"), G: (43.13, "250356938/model_0374999.pth")}


@pytest.mark.parametrize("name", RELEASED)
def test_published_ap_and_urls(name):
    entry = model_zoo.entry(name)
    ap, file = RELEASED[name]
    assert (entry.ap, entry.num_classes) == (ap, 80)
    assert (
        model_zoo.get_checkpoint_url(name)
        == f"https://mobile-cv.s3-us-west-2.amazonaws.com/d2go/models/{file}"
    )
    assert entry.arch.name == model_zoo.get_config(name).MODEL.FBNETV3.ARCH


def test_detectors_and_classifiers_are_listed_separately():
    assert [entry.name for entry in model_zoo.list_detectors()] == [A, G]
    assert not {A, G} & {entry.name for entry in model_zoo.list_classifiers()}


def test_configs_with_and_without_weights():
    cfg = model_zoo.get_config(A)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (224, 320)
    assert model_zoo.get_config("coco/faster_rcnn_fbnetv3_b_C4").MODEL.FBNETV3.ARCH == "fbnetv3_b_det"
    with pytest.raises(UnknownNameError, match="no weights for 'coco/faster_rcnn_fbnetv3_b_C4'"):
        model_zoo.get("coco/faster_rcnn_fbnetv3_b_C4", trained=True)
    with pytest.raises(UnknownNameError, match="did you mean faster_rcnn_fbnetv3_a_C4"):
        model_zoo.get_config("coco/faster_rcnn_fbnetv3_a_c4")


def test_a_randomly_initialized_detector():
    assert model_zoo.get(A, device="cpu").roi_heads.num_classes == 80


def test_a_pretrained_detector(released, cache):
    """The weights are read from the download cache; their tensor names are the authors'."""
    path = cached_path(model_zoo.get_checkpoint_url(A))
    path.parent.mkdir(parents=True)
    raw = {key: value + 1 for key, value in released[1].items()}
    torch.save({"model": raw, "ema_state": released[1], "iteration": 479_999}, path)
    model = model_zoo.get(A, trained=True, device="cpu")
    stem = released[1]["backbone.body.trunk0.fbnetv2_0_0.conv.weight"]
    assert torch.equal(model.backbone.stages[0][0][0].weight, stem)


def test_zoo_addresses_in_a_config(released, cache):
    from fbnetv3.detection import FBNetV3Checkpointer

    path = cached_path(model_zoo.get_checkpoint_url(A))
    path.parent.mkdir(parents=True)
    torch.save({"model": released[1]}, path)
    cfg = model_zoo.get_config(A)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", f"zoo://{A}"
    model = build_model(cfg)
    FBNetV3Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    assert torch.equal(
        model.roi_heads.box_predictor.cls_score.bias, released[1]["roi_heads.box_predictor.cls_score.bias"]
    )
