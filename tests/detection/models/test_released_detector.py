"""The released A C4 detector: parameters, MACs, tensor names, and the outputs of the original network."""

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from fbnetv3.arch import get_arch
from fbnetv3.arch.detector_cost import detector_cost
from fbnetv3.detection import get_config, load_detector

# Parameters of the released detectors, and Table 5 of the paper: parameters in millions and MACs in billions
PARAMS = {
    "fbnetv3_a_det": 5_306_708,
    "fbnetv3_b_det": 6_526_636,
    "fbnetv3_d_det": 9_706_572,
    "fbnetv3_e_det": 10_669_772,
}
TABLE_5 = {
    "fbnetv3_a_det": (5.3, 2.9),
    "fbnetv3_e_det": (10.6, 5.3),
    "efficientnet_b0_det": (8.0, 3.6),
    "efficientnet_b1_det": (13.3, 5.6),
}


def build(name):
    cfg = get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def detector(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "model.pth"
    torch.save({"model": released[1]}, path)
    return load_detector(build("faster_rcnn_fbnetv3_a_C4"), path), path


@pytest.mark.parametrize("letter", "abcdefg")
def test_parameters_are_those_of_the_definition_and_the_released_detectors(letter):
    built = sum(p.numel() for p in build(f"faster_rcnn_fbnetv3_{letter}_C4").parameters())
    name = f"fbnetv3_{letter}_det"
    assert built == detector_cost(get_arch(name)).params
    assert built == PARAMS.get(name, built)


@pytest.mark.parametrize("name", TABLE_5)
def test_cost_is_table_5(name):
    """The paper truncates E's 10.67 M parameters to 10.6."""
    cost = detector_cost(get_arch(name))
    params, macs = TABLE_5[name]
    assert 0 <= cost.params / 1e6 - params < 0.1
    assert round(cost.macs_conv / 1e9, 1) == macs


def test_macs_at_table_5s_setting():
    assert round(detector_cost(get_arch("fbnetv3_a_det")).macs_conv / 1e9, 2) == 2.92
    assert f"{detector_cost(get_arch('fbnetv3_e_det')).macs_conv / 1e9:.2f}" == "5.33"


def test_macs_equal_fvcores(detector):
    model, _ = detector
    image, regions = torch.zeros(1, 3, 192, 320), torch.zeros(3, 112, 6, 6)
    cost = detector_cost(get_arch("fbnetv3_a_det"), 192, 320, num_proposals=3)

    def macs(module, *inputs):
        return FlopCountAnalysis(module, *inputs).unsupported_ops_warnings(False).by_operator()

    assert macs(model.backbone, image)["conv"] == cost.trunk.macs_conv
    maps = model.backbone(image)["res4"]
    assert macs(model.proposal_generator.rpn_head, ([maps],))["conv"] == cost.rpn_head.macs_conv
    assert macs(model.roi_heads.box_head, regions)["conv"] == 3 * cost.box_head.macs_conv
    assert macs(model.roi_heads.box_predictor, torch.zeros(1, 200))["linear"] == cost.predictor.macs_conv


def assert_equal(actual, expected, name):
    """Compare shape, mean, standard deviation and the first values, to 1e-4 of the largest."""
    shape, mean, std, first = expected
    first = torch.tensor(first)
    assert list(actual.shape) == shape, name
    assert actual.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5), name
    assert actual.std().item() == pytest.approx(std, rel=1e-4), name
    assert (actual.flatten()[: len(first)] - first).abs().max() < 1e-4 * first.abs().max(), name


@torch.no_grad()
def test_features_and_rpn_outputs_are_reproduced(released, detector):
    facts, (model, _) = released[0], detector
    x = torch.from_numpy(np.random.default_rng(1000).normal(0, 1, (1, 3, 224, 320)).astype(np.float32))
    y = x
    for s, stage in enumerate(model.backbone.stages):
        y = stage(y)
        assert_equal(y, facts["features"][f"trunk{s}"], f"stage {s}")
    logits, deltas = model.proposal_generator.rpn_head([model.backbone(x)["res4"]])
    assert_equal(logits[0], facts["rpn_logits"], "objectness")
    assert_equal(deltas[0], facts["rpn_deltas"], "anchor deltas")


@torch.no_grad()
def test_box_head_outputs_are_reproduced(released, detector):
    facts, (model, _) = released[0], detector
    regions = torch.from_numpy(np.random.default_rng(7).normal(0, 1, (4, 112, 6, 6)).astype(np.float32))
    features = model.roi_heads.box_head(regions)
    scores, deltas = model.roi_heads.box_predictor(features)
    for name, output in {"box_head": features, "scores": scores, "deltas": deltas}.items():
        assert_equal(output, facts[name], name)


def test_detectron2s_own_checkpointer_loads_it_too(detector):
    """Every tensor is loaded; none is missing or unexpected."""
    expected, path = detector
    model = build("faster_rcnn_fbnetv3_a_C4")
    incompatible = DetectionCheckpointer(model)._load_model(
        {"model": torch.load(path, weights_only=True)["model"]}
    )
    assert not (incompatible.missing_keys or incompatible.unexpected_keys or incompatible.incorrect_shapes)
    assert all(
        torch.equal(a, b)
        for a, b in zip(expected.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_anchors_and_pooling_are_those_of_the_released_detector(detector):
    model, _ = detector
    (anchors,) = model.proposal_generator.anchor_generator([torch.zeros(1, 1, 1, 1)])
    areas = anchors.area().sqrt().reshape(5, 3)
    assert torch.allclose(areas, torch.tensor([32.0, 64, 96, 128, 160])[:, None].expand(5, 3))
    sides = anchors.tensor[:, 2:] - anchors.tensor[:, :2]
    assert torch.allclose(
        (sides[:, 1] / sides[:, 0]).reshape(5, 3), torch.tensor([0.5, 1.0, 2.0]).expand(5, 3)
    )
    assert tuple(model.roi_heads.box_pooler.output_size) == (6, 6)
    assert model.proposal_generator.post_nms_topk[False] == 75


def test_the_fpn_detector_is_built_as_released():
    """G with FPN: one RPN block from 128 to 160 channels, box head on 128 channels, feature maps at strides 4 to 64."""
    model = build("faster_rcnn_fbnetv3_g_FPN")
    assert {name: shape.stride for name, shape in model.backbone.output_shape().items()} == {
        f"p{level}": 2**level for level in range(2, 7)
    }
    (row,) = model.proposal_generator.rpn_head.blocks.stages[0]
    assert (row.expand[0].in_channels, row.project[0].out_channels) == (128, 160)
    assert model.roi_heads.box_head.blocks.stages[0][0].expand[0].in_channels == 128
    assert model.roi_heads.box_head.output_shape.channels == 288
    assert len(model.proposal_generator.anchor_generator.cell_anchors) == 5
    assert model.roi_heads.in_features == ["p3", "p4", "p5", "p6"]
