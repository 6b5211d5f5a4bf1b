"""Backbone and heads in isolation: feature maps, norms, frozen stages, initialization from classifiers."""

import logging

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, build_backbone, build_model
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from torch import nn

import fbnetv3
from fbnetv3.arch import get_arch, list_archs
from fbnetv3.arch.definition import ArchDef, Row, Stage
from fbnetv3.arch.detector_cost import detector_cost, detector_parts
from fbnetv3.detection import FBNetV3Backbone, FBNetV3BoxHead, FBNetV3RPNHead, get_config
from fbnetv3.errors import UnknownNameError, UsageError, WeightsError
from fbnetv3.modeling.sync_batchnorm import CpuSyncBatchNorm2d
from tests.detection.detectors import detect, image, sample_inputs, small_config, train_step
from tests.modeling.weight_files import mobile_vision, randomized

SMALL = "fbnetv3_a0"


def norms(model):
    return {
        type(m)
        for m in model.modules()
        if "Norm" in type(m).__name__ and "Activation" not in type(m).__name__
    }


def test_importing_registers_everything():
    for name in (
        "build_fbnetv3_backbone",
        "build_fbnetv3_fpn_backbone",
        "build_retinanet_fbnetv3_fpn_backbone",
    ):
        assert name in BACKBONE_REGISTRY
    assert RPN_HEAD_REGISTRY.get("FBNetV3RPNHead") is FBNetV3RPNHead
    assert ROI_BOX_HEAD_REGISTRY.get("FBNetV3BoxHead") is FBNetV3BoxHead


@pytest.mark.parametrize("arch", ["fbnetv3_a", "fbnetv3_a_det", "fbnetv3_c"])
def test_feature_maps_have_the_shapes_that_detectors_expect(arch):
    """Sizes are rounded up, even in A and C, which pad less as classifiers."""
    names = ["res2", "res3", "res4", "res5"]
    backbone = FBNetV3Backbone(arch=arch, out_features=names).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 70, 129))
    assert list(maps) == names
    for name, shape in backbone.output_shape().items():
        height, width = -(-70 // shape.stride), -(-129 // shape.stride)
        assert maps[name].shape == (1, shape.channels, height, width)


def test_blocks_beyond_the_deepest_feature_map_are_not_built():
    assert len(FBNetV3Backbone(arch="fbnetv3_a_det", out_features=["res4"]).stages) == 4
    assert len(FBNetV3Backbone(arch="fbnetv3_a_det", out_features=["res3"]).stages) == 3


@pytest.mark.parametrize("name", [n for n in list_archs() if n != "fbnetv3_20g"])
def test_every_registered_architecture_can_be_a_detector(name):
    defn = get_arch(name)
    parts = detector_parts(defn)
    blocks = [block for block in defn.blocks() if block.kind != "mbpool"]
    assert len(parts.trunk.blocks()) + len(parts.box_head.blocks()) == len(blocks)
    assert {block.spec.stride for block in parts.rpn_head.blocks()} == {1}
    assert detector_cost(defn, 64, 64).params > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"out_features": ["res9"]},
            r"fbnetv3_a0 has the feature maps res1, .*, res5, not \['res9'\]: set MODEL.FBNETV3",
        ),
        ({"out_features": []}, r"not \[\]: set MODEL.FBNETV3.OUT_FEATURES"),
        ({"norm": "SynBN"}, "unknown norm 'SynBN': did you mean"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        FBNetV3Backbone(arch=SMALL, **arguments)


def test_an_unknown_architecture():
    with pytest.raises(UnknownNameError, match="did you mean fbnetv3_a"):
        FBNetV3Backbone(arch="fbnetv3_aa")


def test_a_network_of_one_stride_cannot_be_a_detector():
    row = Row("conv", 8, kernel=3, act="relu")
    with pytest.raises(UsageError, match="cannot be split into trunk and box head"):
        FBNetV3BoxHead(ShapeSpec(channels=8), arch=ArchDef("flat", (Stage((row,)),), 32, 32))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("SyncBN", CpuSyncBatchNorm2d),
    ],
)
def test_norms(name, kind, small_cfg):
    """Trunk, RPN head and box head have the same norm; on CPUs, SyncBN is the implementation that works there."""
    small_cfg.MODEL.FBNETV3.NORM = name
    model = build_model(small_cfg)
    (norm,) = norms(model)
    assert issubclass(norm, kind)
    assert all(torch.isfinite(torch.tensor([*train_step(model, [image()]).values()])))


def test_syncbn_of_an_fpn_works_on_cpus_too():
    cfg = small_config("faster_rcnn_fbnetv3_g_FPN")
    cfg.MODEL.FBNETV3.NORM = cfg.MODEL.FPN.NORM = "SyncBN"
    fpn = build_backbone(cfg)
    assert norms(fpn) == {CpuSyncBatchNorm2d}
    assert fpn.fpn_lateral2.bias is None


def test_syncbn_on_a_gpu_is_torchs():
    assert norms(FBNetV3Backbone(arch=SMALL, norm="SyncBN")) == {nn.SyncBatchNorm}


def test_frozen_norms_do_not_block_residual_branches():
    """The scale of a norm that is not trained must not be initialized to zero."""
    backbone = FBNetV3Backbone(arch=SMALL, norm="FrozenBN")
    assert all(m.weight.min() == 1 for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d))


@pytest.mark.parametrize("freeze_at", range(7))
def test_frozen_stages(freeze_at):
    """As in ResNets, 1 freezes the stem's stride, 2 that of res2 too, and 5 all; BatchNorm statistics stay the same."""
    backbone = FBNetV3Backbone(arch=SMALL, out_features=["res5"], freeze_at=freeze_at)
    frozen = [stride <= 2**freeze_at for stride in (2, 2, 4, 8, 16, 32)] if freeze_at else [False] * 6
    for is_frozen, stage in zip(frozen, backbone.stages, strict=True):
        assert all(p.requires_grad != is_frozen for p in stage.parameters())
        assert norms(stage) == {FrozenBatchNorm2d if is_frozen else nn.BatchNorm2d}
    assert (any(frozen), all(frozen)) == (freeze_at > 0, freeze_at >= 5)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    for key, value in backbone.state_dict().items():
        is_statistic = key.endswith(("running_mean", "running_var"))
        changes = is_statistic and not frozen[int(key.split(".")[1])]
        assert torch.equal(before[key], value) != changes or "num_batches" in key, key


@pytest.mark.parametrize("name", ["faster_rcnn_fbnetv3_a_C4", "retinanet_fbnetv3_a_FPN"])
def test_only_the_heads_are_trained_if_all_stages_are_frozen(name):
    """MODEL.BACKBONE.FREEZE_AT 5: a step changes no weight and no BatchNorm statistic of the trunk, but all heads."""
    cfg = small_config(name)
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    train_step(model, sample_inputs()[:2])
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert not {key for key in changed if "stages." in key and not key.startswith(("proposal", "roi"))}
    heads = ("proposal_generator", "roi_heads") if "C4" in name else ("head", "backbone.fpn_lateral3")
    for part in heads:
        assert any(key.startswith(part) for key in changed), part


def test_freezing_random_weights_gives_a_warning(small_cfg, caplog):
    small_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with caplog.at_level(logging.WARNING):
        build_backbone(small_cfg)
    assert "freezes randomly initialized blocks" in caplog.text


@pytest.fixture(scope="module")
def classifier():
    return randomized(fbnetv3.create_model(SMALL, num_classes=10))


@pytest.mark.parametrize("layout", ["fbnetv3", "mobile_vision"])
def test_a_classifiers_weights_initialize_trunk_and_box_head(layout, classifier, tmp_path, small_cfg):
    state = classifier.state_dict() if layout == "fbnetv3" else mobile_vision(classifier)
    torch.save({"state_dict": state}, tmp_path / "classifier.pth")
    small_cfg.MODEL.FBNETV3.WEIGHTS = str(tmp_path / "classifier.pth")
    model = build_model(small_cfg).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        features = model.backbone(x)["res4"]
        expected = classifier.backbone.stages[:5](x)
        assert torch.equal(features, expected)
        assert torch.equal(
            model.roi_heads.box_head.blocks(features), classifier.backbone.stages[5](expected)
        )


def test_timms_weights_initialize_a_trunk(tmp_path):
    """Even those of B, which pads less than timm's as a classifier."""
    timm = pytest.importorskip("timm")
    weights = timm.create_model("fbnetv3_b").state_dict()
    torch.save(weights, tmp_path / "timm.pth")
    peer = timm.create_model("fbnetv3_b", features_only=True, out_indices=(3,)).eval()
    peer.load_state_dict({key: weights[key] for key in peer.state_dict()})
    backbone = FBNetV3Backbone(arch="fbnetv3_b", weights=tmp_path / "timm.pth").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (expected,), features = peer(x), backbone(x)["res4"]
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_load_into_frozen_norms(classifier, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    backbone = FBNetV3Backbone(arch=SMALL, norm="FrozenBN", weights=tmp_path / "classifier.pth")
    norm = classifier.backbone.stages[3][0].expand[1]
    assert torch.equal(backbone.stages[3][0].expand[1].running_var, norm.running_var)


def test_weights_of_a_different_network_are_refused(classifier, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(WeightsError, match=r"classifier.pth does not fit fbnetv3_a: "):
        FBNetV3Backbone(arch="fbnetv3_a", weights=tmp_path / "classifier.pth")


def test_a_classifiers_weights_are_ignored_if_a_detectors_are_given(small_cfg):
    """If MODEL.WEIGHTS is set, the classifier's file need not exist."""
    small_cfg.MODEL.FBNETV3.WEIGHTS, small_cfg.MODEL.WEIGHTS = "/nowhere.pth", "detector.pth"
    build_model(small_cfg)


def test_a_box_head_on_an_fpn_is_randomly_initialized(classifier, tmp_path, caplog):
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    cfg = small_config("faster_rcnn_fbnetv3_g_FPN")
    cfg.MODEL.FBNETV3.WEIGHTS = str(tmp_path / "classifier.pth")
    with caplog.at_level(logging.WARNING):
        model = build_model(cfg)
    assert "the box head is randomly initialized" in caplog.text
    stem = model.backbone.bottom_up.stages[0][0][0].weight
    assert torch.equal(stem, classifier.backbone.stages[0][0][0].weight)


def test_the_config_that_starts_from_a_classifier_has_its_preprocessing():
    cfg = get_config("faster_rcnn_fbnetv3_a_C4_classifier")
    assert (cfg.INPUT.FORMAT, cfg.MODEL.FBNETV3.WEIGHTS) == ("RGB", "zoo://imagenet/fbnetv3_a.yaml")
    assert [round(value / 255, 3) for value in cfg.MODEL.PIXEL_MEAN] == [0.485, 0.456, 0.406]
    assert [round(value / 255, 3) for value in cfg.MODEL.PIXEL_STD] == [0.229, 0.224, 0.225]


def test_detection_blocks_have_nothing_after_the_depthwise_convolution():
    block = FBNetV3Backbone(arch="fbnetv3_a_det").stages[2][0]
    assert len(block.depthwise) == 1 and block.depthwise[0].bias is None
    assert block.se.fc1.out_channels == 24  # a quarter of the 96 expanded channels
    assert block.project[1].weight.min() == 1


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_one_proposal_or_none(count, training):
    head = FBNetV3BoxHead(ShapeSpec(channels=112), arch="fbnetv3_a_det").train(training)
    assert head(torch.zeros(count, 112, 6, 6)).shape == (count, head.output_shape.channels)
    assert all(torch.isfinite(buffer).all() for buffer in head.buffers())


def test_an_image_too_small_for_batchnorm_says_what_to_do(small_cfg):
    model = build_model(small_cfg)
    tiny = image(16, 16, boxes=((2.0, 2.0, 12.0, 12.0),))
    with pytest.raises(
        UsageError, match=r"a batch of 1 of size 16 x 16 .*INPUT.MIN_SIZE_TRAIN.*SOLVER.IMS_PER_BATCH"
    ):
        train_step(model, [tiny])
    assert all(loss == loss for loss in train_step(model, [tiny, tiny]).values())
    assert len(detect(model, [tiny])) == 1


def test_an_image_too_small_for_batchnorm_in_an_fpn():
    cfg = small_config("faster_rcnn_fbnetv3_g_FPN")
    with pytest.raises(
        UsageError, match=r"a batch of 1 of size 1 x 1 leaves BatchNorm one value per channel"
    ):
        train_step(build_model(cfg), [image(64, 64)])
    cfg.MODEL.FBNETV3.NORM = "GN"
    assert all(loss == loss for loss in train_step(build_model(cfg), [image(64, 64)]).values())
