"""Weights in every layout, the published outputs, and weights that do not fit."""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import fbnetv3
from fbnetv3.errors import WeightsError
from tests.modeling.weight_files import mobile_vision, randomized, weight_by_formula

SMALL = "fbnetv3_digits"


@pytest.fixture
def model():
    return randomized(fbnetv3.create_model(SMALL, num_classes=10))


def outputs_equal(a, b):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.equal(a.eval()(x), b.eval()(x))


@pytest.fixture(scope="module")
def published():
    """Load keys and outputs of the published FBNetV3-A, with the weights and images that they were computed with."""
    recorded = json.loads(Path(__file__).with_name("published_classifier_a.json").read_text())
    weights = {key: weight_by_formula(key, shape) for key, shape in recorded["shapes"].items()}
    images = np.random.default_rng(1000).normal(
        0, 1, (2, 3, recorded["resolution"], recorded["resolution"])
    )
    return recorded, weights, torch.from_numpy(images.astype(np.float32))


def test_the_published_outputs_are_reproduced(published):
    recorded, weights, images = published
    model = fbnetv3.create_model("fbnetv3_a").eval()
    report = fbnetv3.load_weights(model, {"state_dict": weights, "model_ema": None})
    assert (report.naming, report.head_loaded) == ("mobile_vision", True)
    stats = {}
    for s, stage in enumerate(model.backbone.stages):
        for b, block in enumerate(stage):
            block.register_forward_hook(lambda m, i, y, name=f"xif{s}_{b}": stats.update({name: y}))
    with torch.no_grad():
        logits = model(images)
    expected = torch.tensor(recorded["logits"])
    assert (logits[:, : expected.shape[1]] - expected).abs().max() < 1e-4 * expected.abs().max()
    assert recorded["block_stats"].keys() == stats.keys()
    for name, (shape, mean, std) in recorded["block_stats"].items():
        assert list(stats[name].shape) == shape
        assert stats[name].mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert stats[name].std().item() == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("letter", "abcdefg")
def test_every_tensor_of_every_published_classifier_is_loaded(letter):
    """All published files have one format; a network written in it is read back completely."""
    model = fbnetv3.create_model(f"fbnetv3_{letter}")
    published_weights = mobile_vision(model)
    assert len(published_weights) == len(model.state_dict())
    assert "backbone.stages.xif0_0.conv.bias" in published_weights
    assert "backbone.stages.xif6_0.pwl.conv.weight" in published_weights
    copy = fbnetv3.create_model(f"fbnetv3_{letter}")
    assert fbnetv3.load_weights(copy, published_weights).head_loaded
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), copy.state_dict().values(), strict=True)
    )


def test_published_names_and_shapes(published):
    recorded, _, _ = published
    shapes = {
        key: list(value.shape) for key, value in mobile_vision(fbnetv3.create_model("fbnetv3_a")).items()
    }
    assert shapes == recorded["shapes"]


@pytest.mark.parametrize(
    ("timm_name", "name"), [("fbnetv3_b", "fbnetv3_b_same_padding"), ("fbnetv3_d",) * 2, ("fbnetv3_g",) * 2]
)
def test_timms_networks_give_equal_outputs(timm_name, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    timm_model = randomized(timm.create_model(timm_name))
    model = fbnetv3.create_model(name).eval()
    assert fbnetv3.load_weights(model, timm_model.state_dict()).naming == "timm"
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = timm_model(x)
        actual = model(x)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_timms_b_is_refused_if_the_padding_differs():
    timm = pytest.importorskip("timm")
    with pytest.raises(WeightsError, match="fbnetv3_b_same_padding"):
        fbnetv3.load_weights(fbnetv3.create_model("fbnetv3_b"), timm.create_model("fbnetv3_b").state_dict())


def test_a_file_in_this_projects_layout(model, tmp_path):
    torch.save({"model": model.state_dict(), "arch": SMALL}, tmp_path / "x.pth")
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    assert fbnetv3.load_weights(copy, tmp_path / "x.pth").naming == "fbnetv3"
    assert outputs_equal(model, copy)


def test_a_safetensors_file(model, tmp_path):
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "x.safetensors")
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    fbnetv3.load_weights(copy, tmp_path / "x.safetensors")
    assert outputs_equal(model, copy)


def test_ema_weights_are_preferred_and_prefixes_removed(model):
    raw = mobile_vision(fbnetv3.create_model(SMALL, num_classes=10))
    ema = {f"module.{key}": value for key, value in mobile_vision(model).items()}
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    fbnetv3.load_weights(copy, {"state_dict": raw, "model_ema": ema, "epoch": 3})
    assert outputs_equal(model, copy)


def test_plain_values_next_to_the_weights(model, tmp_path):
    metadata = {"args": argparse.Namespace(lr=0.1), "best": np.float64(79.5), "epoch": np.int64(3)}
    torch.save({"state_dict": mobile_vision(model), "model_ema": None, **metadata}, tmp_path / "x.pth")
    assert fbnetv3.load_weights(fbnetv3.create_model(SMALL, num_classes=10), tmp_path / "x.pth").head_loaded


def test_a_different_number_of_classes_keeps_the_head_and_warns(model, caplog):
    copy = fbnetv3.create_model(SMALL, num_classes=3)
    head = copy.head.weight.clone()
    with caplog.at_level(logging.WARNING):
        assert not fbnetv3.load_weights(copy, model.state_dict()).head_loaded
    assert "has 10 classes, the network 3: the head is not loaded" in caplog.text
    assert torch.equal(copy.head.weight, head)
    assert torch.equal(
        copy.backbone.stages[3][0].expand[0].weight, model.backbone.stages[3][0].expand[0].weight
    )


def test_a_classifier_without_head_takes_the_trunk(model):
    copy = fbnetv3.create_model(SMALL, num_classes=0)
    assert not fbnetv3.load_weights(copy, model.state_dict()).head_loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("head.conv.bias"), "missing: head.bias"),
        (
            lambda d: d.update({"backbone.stages.xif9_0.more": torch.ones(1)}),
            "unknown: backbone.stages.xif9_0.more",
        ),
        (
            lambda d: d.update({"backbone.stages.xif0_0.conv.weight": torch.ones(8, 1, 3, 3)}),
            r"shape: backbone.stages.0.0.0.weight \(8, 1, 3, 3\) instead of \(8, 3, 3, 3\)",
        ),
        (
            lambda d: [d.pop(key) for key in list(d) if ".xif3_" in key],
            r"missing: backbone.stages.3.0.expand.0.weight, .* and \d+ more",
        ),
    ],
)
def test_a_mismatch_lists_keys_and_changes_nothing(model, change, message):
    weights = mobile_vision(model)
    change(weights)
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    before = {key: value.clone() for key, value in copy.state_dict().items()}
    with pytest.raises(WeightsError, match=f"does not fit .*: {message}; check the architecture"):
        fbnetv3.load_weights(copy, weights)
    assert all(torch.equal(before[key], value) for key, value in copy.state_dict().items())


def test_weights_of_a_different_family():
    from torchvision.models import resnet18

    with pytest.raises(WeightsError, match="the keys match no known naming .*: conv1.weight"):
        fbnetv3.load_weights(fbnetv3.create_model(SMALL), resnet18().state_dict())


def test_corrupt_and_missing_files(model, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="x.pth: is corrupt or not a checkpoint"):
        fbnetv3.load_weights(model, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="y.pth: no such file"):
        fbnetv3.load_weights(model, tmp_path / "y.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite(model, tmp_path, kind, value, dtype):
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    keys = [key for key in weights if key.endswith(kind)]
    for key in keys[-2:]:
        weights[key].view(-1)[-1] = value
    torch.save(weights, tmp_path / "x.pth")
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    before = {key: value.clone() for key, value in copy.state_dict().items()}
    with pytest.raises(WeightsError, match=f"x.pth: NaN or infinity in {keys[-2]}, {keys[-1]}: "):
        fbnetv3.load_weights(copy, tmp_path / "x.pth")
    assert all(torch.equal(before[key], value) for key, value in copy.state_dict().items())


def test_the_head_that_is_not_loaded_may_be_anything(model):
    weights = model.state_dict() | {"head.weight": torch.full_like(model.head.weight, float("nan"))}
    assert not fbnetv3.load_weights(fbnetv3.create_model(SMALL, num_classes=3), weights).head_loaded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions(model, dtype):
    """Counters stay integers."""
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert any(not value.is_floating_point() for value in weights.values())
    copy = fbnetv3.create_model(SMALL, num_classes=10)
    fbnetv3.load_weights(copy, weights)
    assert all(torch.equal(value, weights[key].to(value.dtype)) for key, value in copy.state_dict().items())
