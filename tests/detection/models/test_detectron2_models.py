"""FBNetV3 in detectron2 projects: configs, training steps, inference, and extreme images."""

import math
import subprocess
import sys

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config_file
from detectron2.modeling import GeneralizedRCNN, StandardROIHeads, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

import fbnetv3.detection
from fbnetv3.arch import compound_scale, configs_folder, get_arch, save_arch
from fbnetv3.detection import FBNetV3Backbone, FBNetV3BoxHead, FBNetV3RPNHead, get_config
from fbnetv3.errors import UnknownNameError, UsageError
from tests.detection.detectors import detect, image, small_config, train_step

CONFIGS = sorted(
    file.stem for file in (configs_folder() / "coco").glob("*.yaml") if not file.stem.startswith("base_")
)


def finite(losses):
    return all(math.isfinite(value) for value in losses.values())


def test_three_lines_put_fbnetv3_into_a_detectron2_project():
    cfg = get_cfg()

    from fbnetv3.detection import add_fbnetv3_config, config_file

    add_fbnetv3_config(cfg)
    cfg.merge_from_file(config_file("faster_rcnn_fbnetv3_a_C4"))

    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    losses = train_step(model, [image(), image(seed=1)])
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert finite(losses)
    assert all(p.grad is not None for p in model.parameters())
    (instances,) = detect(model, [image()])
    assert instances.has("pred_boxes") and instances.has("scores") and instances.has("pred_classes")


def test_a_detectron2_config_needs_only_the_backbones_name():
    """A ResNet's FPN, proposals and heads work on our feature maps, because these have a ResNet's names."""
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"))
    fbnetv3.detection.add_fbnetv3_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_fbnetv3_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    model = build_model(cfg)
    assert isinstance(model.backbone.bottom_up, FBNetV3Backbone)
    assert finite(train_step(model, [image()]))


def test_a_config_without_our_keys_says_how_to_add_them():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = "build_fbnetv3_backbone", "cpu"
    with pytest.raises(UsageError, match=r"call fbnetv3.detection.add_fbnetv3_config\(cfg\) before"):
        build_model(cfg)


def test_lazy_configs():
    """Plain constructors work without a yacs config."""
    arch = "fbnetv3_a0"
    channels = 104
    model = LazyCall(GeneralizedRCNN)(
        backbone=LazyCall(FBNetV3Backbone)(arch=arch, out_features=["res4"], norm="BN", freeze_at=1),
        proposal_generator=LazyCall(RPN)(
            in_features=["res4"],
            head=LazyCall(FBNetV3RPNHead)(arch=arch, in_channels=channels, num_anchors=3, num_blocks=1),
            anchor_generator=LazyCall(DefaultAnchorGenerator)(
                sizes=[[32]], aspect_ratios=[0.5, 1.0, 2.0], strides=[16], offset=0.0
            ),
            anchor_matcher=LazyCall(Matcher)(
                thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
            ),
            box2box_transform=LazyCall(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=64,
            positive_fraction=0.5,
            pre_nms_topk=(100, 100),
            post_nms_topk=(20, 20),
            nms_thresh=0.7,
        ),
        roi_heads=LazyCall(StandardROIHeads)(
            num_classes=5,
            batch_size_per_image=16,
            positive_fraction=0.25,
            proposal_matcher=LazyCall(Matcher)(
                thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
            ),
            box_in_features=["res4"],
            box_pooler=LazyCall(ROIPooler)(
                output_size=6, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIAlignV2"
            ),
            box_head=LazyCall(FBNetV3BoxHead)(
                input_shape=LazyCall(ShapeSpec)(channels=channels), arch=arch
            ),
            box_predictor=LazyCall(FastRCNNOutputLayers)(
                input_shape=LazyCall(ShapeSpec)(channels=208),
                box2box_transform=LazyCall(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
                num_classes=5,
            ),
        ),
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[57.375, 57.12, 58.395],
    )
    built = instantiate(model)
    assert finite(train_step(built, [image()]))
    assert len(detect(built, [image()])) == 1


# Small training runs, which do not follow the paper
SMALL = ("coco128_fbnetv3_a_C4", "faster_rcnn_fbnetv3_digits_C4", "finetune_fbnetv3_a_C4")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SMALL])
def test_every_config_has_the_papers_training_settings(name):
    cfg = get_config(name)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.LR_SCHEDULER_NAME) == (270_000, "WarmupCosineLR")
    rate = 0.02 if name.startswith("retinanet") else 0.16
    assert rate == cfg.SOLVER.BASE_LR
    assert (cfg.MODEL.FBNETV3.NORM, cfg.MODEL_EMA.ENABLED, cfg.MODEL.BACKBONE.FREEZE_AT) == (
        "SyncBN",
        True,
        0,
    )
    assert cfg.MODEL.FBNETV3.ARCH.startswith("torchvision/") or get_arch(cfg.MODEL.FBNETV3.ARCH)
    if name.endswith("_C4"):
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 75


def test_an_unknown_config_name_gives_suggestions():
    with pytest.raises(UnknownNameError, match="did you mean faster_rcnn_fbnetv3_a_C4"):
        get_config("faster_rcnn_fbnetv3a_C4")


@pytest.mark.parametrize("name", ["retinanet_fbnetv3_a_FPN", "faster_rcnn_fbnetv3_g_FPN"])
def test_training_and_inference_with_fpn(name):
    model = build_model(small_config(name))
    assert finite(train_step(model, [image(), image(70, 50, seed=1)]))
    assert len(detect(model, [image()])) == 1


@pytest.mark.parametrize("name", ["mask_rcnn_fbnetv3_a_C4", "faster_rcnn_fbnetv3_g_FPN"])
def test_masks(name):
    cfg = small_config(name)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(cfg)
    losses = train_step(model, [image(masks=True)])
    assert "loss_mask" in losses and finite(losses)
    (instances,) = detect(model, [image()])
    assert instances.pred_masks.shape == (len(instances), 64, 96)


def test_a_searched_architecture_from_its_file(tmp_path, small_cfg):
    save_arch(
        compound_scale(get_arch("fbnetv3_a0"), depth=0.5, name="searched"), tmp_path / "searched.yaml"
    )
    small_cfg.MODEL.FBNETV3.ARCH = str(tmp_path / "searched.yaml")
    assert finite(train_step(build_model(small_cfg), [image()]))


def test_a_network_for_small_images_is_split_one_stride_earlier(small_cfg):
    small_cfg.MODEL.FBNETV3.ARCH = "fbnetv3_digits"
    small_cfg.MODEL.FBNETV3.OUT_FEATURES = ["res3"]
    small_cfg.MODEL.RPN.IN_FEATURES = small_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res3"]
    model = build_model(small_cfg)
    assert model.backbone.output_shape()["res3"].stride == 8
    assert finite(train_step(model, [image()]))


EXTREME_IMAGES = {
    "no boxes": image(boxes=()),
    "one pixel wide": image(200, 1, boxes=((0.0, 10.0, 1.0, 150.0),)),
    "very tall": image(10_000, 16, boxes=((2.0, 100.0, 14.0, 9_000.0),)),
    "box of the whole image": image(boxes=((0.0, 0.0, 96.0, 64.0),)),
    "tiny box": image(boxes=((5.0, 5.0, 5.5, 5.5),)),
    "all black": {**image(), "image": torch.zeros(3, 64, 96)},
}


@pytest.mark.parametrize("kind", EXTREME_IMAGES)
def test_extreme_images(kind, small_cfg):
    model = build_model(small_cfg)
    assert finite(train_step(model, [EXTREME_IMAGES[kind]]))
    (instances,) = detect(model, [EXTREME_IMAGES[kind]])
    height, width = EXTREME_IMAGES[kind]["height"], EXTREME_IMAGES[kind]["width"]
    assert instances.image_size == (height, width)
    assert (instances.pred_boxes.tensor >= 0).all()
    assert (instances.pred_boxes.tensor <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("arch", ["fbnetv3_a", "fbnetv3_g_det"])
def test_an_image_of_one_pixel_in_networks_that_pad_less_as_classifiers(arch, small_cfg):
    small_cfg.MODEL.FBNETV3.ARCH = arch
    assert len(detect(build_model(small_cfg), [image(1, 1, boxes=())])) == 1


@pytest.mark.parametrize("name", ["faster_rcnn_fbnetv3_a_C4", "retinanet_fbnetv3_a_FPN"])
def test_a_batch_of_mixed_sizes(name):
    inputs = [
        image(),
        image(200, 1, boxes=((0.0, 10.0, 1.0, 150.0),)),
        image(33, 257, seed=2),
        image(boxes=()),
    ]
    model = build_model(small_config(name))
    assert finite(train_step(model, inputs))
    assert [instances.image_size for instances in detect(model, inputs)] == [
        (64, 96),
        (200, 1),
        (33, 257),
        (64, 96),
    ]


def test_a_detector_learns_one_image(small_cfg):
    """Two dozen steps on one box reduce the loss: anchors, sampling and losses fit together."""
    torch.manual_seed(0)
    model = build_model(small_cfg)
    inputs = [image(boxes=((8.0, 8.0, 72.0, 56.0),))]
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(24):
        optimizer.zero_grad()
        losses.append(sum(train_step(model, inputs).values()))
        optimizer.step()
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_without_detectron2_the_import_says_what_to_run():
    script = "import sys; sys.modules['detectron2'] = None; import fbnetv3.detection"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "run `python tools/install_detectron2.py`" in done.stderr.splitlines()[-1]


def test_no_compiled_operator_of_detectron2_is_needed():
    script = """
import sys; sys.modules["detectron2._C"] = None
from detectron2.modeling import build_model
from tests.detection.detectors import detect, image, small_config, train_step
model = build_model(small_config())
train_step(model, [image()]), detect(model, [image()])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
