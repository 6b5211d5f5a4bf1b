"""Weights in every layout, the published outputs, and files that are not what they should be."""

import argparse
import json
import logging
import math
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.weights import _mobile_vision_names, load_checkpoint_file, state_dict_of

SMALL = "fbnetv3_digits"


@pytest.fixture
def model():
    return randomized(fbnetv3.create_model(SMALL, num_classes=10))


def randomized(model, seed=0):
    """The network with BatchNorm statistics as after training, so that every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(m.weight, 0.5, 1.2, generator=generator)
    return model.eval()


def mobile_vision(model):
    """A state dict as the authors publish it."""
    theirs = {ours: theirs for theirs, ours in _mobile_vision_names(model.arch).items()}
    return {theirs[key]: value.clone() for key, value in model.state_dict().items()}


def outputs_equal(a, b):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.equal(a.eval()(x), b.eval()(x))


def weight_by_formula(key, shape):
    """The value of a tensor as a function of its published name, as in the figures of the original network."""
    random = np.random.default_rng(zlib.crc32(key.encode()))
    kind = key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "running_var":
        values = random.uniform(0.5, 1.5, shape)
    elif kind == "weight" and len(shape) == 1:  # BatchNorm; small after projections, so that deep sums stay in range
        values = random.uniform(*((0.1, 0.4) if ".pwl." in key else (0.5, 1.2)), shape)
    elif len(shape) <= 1:
        values = random.normal(0, 0.1, shape)
    else:
        values = random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def published():
    """The published FBNetV3-A: its keys and outputs, with the weights and the input that belong to these."""
    facts = json.loads(Path(__file__).with_name("published_classifier_a.json").read_text())
    weights = {key: weight_by_formula(key, shape) for key, shape in facts["shapes"].items()}
    images = np.random.default_rng(1000).normal(0, 1, (2, 3, facts["resolution"], facts["resolution"]))
    return facts, weights, torch.from_numpy(images.astype(np.float32))


def test_the_published_outputs_are_reproduced(published):
    facts, weights, images = published
    model = fbnetv3.create_model("fbnetv3_a").eval()
    loaded = fbnetv3.load_weights(model, {"state_dict": weights, "model_ema": None})
    assert (loaded.layout, loaded.head) == ("mobile_vision", True)
    stats = {}
    for s, stage in enumerate(model.backbone.stages):
        for b, block in enumerate(stage):
            block.register_forward_hook(lambda m, i, y, name=f"xif{s}_{b}": stats.update({name: y}))
    with torch.no_grad():
        logits = model(images)
    expected = torch.tensor(facts["logits"])
    assert (logits[:, : expected.shape[1]] - expected).abs().max() < 1e-4 * expected.abs().max()
    assert facts["block_stats"].keys() == stats.keys()
    for name, (shape, mean, std) in facts["block_stats"].items():
        assert list(stats[name].shape) == shape
        assert stats[name].mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert stats[name].std().item() == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("letter", "abcdefg")
def test_every_published_classifier_has_a_place_for_each_of_its_tensors(letter):
    """All published files are of one format: ours written in it is read back whole, with nothing left over."""
    model = fbnetv3.create_model(f"fbnetv3_{letter}")
    theirs = mobile_vision(model)
    assert len(theirs) == len(model.state_dict())
    assert "backbone.stages.xif0_0.conv.bias" in theirs
    assert "backbone.stages.xif6_0.pwl.conv.weight" in theirs
    again = fbnetv3.create_model(f"fbnetv3_{letter}")
    assert fbnetv3.load_weights(again, theirs).head
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_published_key_names_are_exactly_ours(published):
    facts, _, _ = published
    shapes = {key: list(value.shape) for key, value in mobile_vision(fbnetv3.create_model("fbnetv3_a")).items()}
    assert shapes == facts["shapes"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("fbnetv3_b", "fbnetv3_b_same_padding"), ("fbnetv3_d",) * 2, ("fbnetv3_g",) * 2]
)
def test_timms_networks_give_equal_outputs(theirs, ours):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    peer = randomized(timm.create_model(theirs))
    model = fbnetv3.create_model(ours).eval()
    assert fbnetv3.load_weights(model, peer.state_dict()).layout == "timm"
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = peer(x), model(x)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_timms_b_is_refused_where_the_padding_differs():
    timm = pytest.importorskip("timm")
    with pytest.raises(WeightsError, match="fbnetv3_b_same_padding"):
        fbnetv3.load_weights(fbnetv3.create_model("fbnetv3_b"), timm.create_model("fbnetv3_b").state_dict())


def test_our_layout_from_a_file(model, tmp_path):
    torch.save({"model": model.state_dict(), "arch": SMALL}, tmp_path / "x.pth")
    again = fbnetv3.create_model(SMALL, num_classes=10)
    assert fbnetv3.load_weights(again, tmp_path / "x.pth").layout == "fbnetv3"
    assert outputs_equal(model, again)


def test_safetensors(model, tmp_path):
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "x.safetensors")
    again = fbnetv3.create_model(SMALL, num_classes=10)
    fbnetv3.load_weights(again, tmp_path / "x.safetensors")
    assert outputs_equal(model, again)


def test_ema_is_preferred_and_prefixes_go(model):
    raw = mobile_vision(fbnetv3.create_model(SMALL, num_classes=10))
    ema = {f"module.{key}": value for key, value in mobile_vision(model).items()}
    again = fbnetv3.create_model(SMALL, num_classes=10)
    fbnetv3.load_weights(again, {"state_dict": raw, "model_ema": ema, "epoch": 3})
    assert outputs_equal(model, again)


def test_another_class_count_keeps_the_trunk_and_says_so(model, caplog):
    again = fbnetv3.create_model(SMALL, num_classes=3)
    head = again.head.weight.clone()
    with caplog.at_level(logging.WARNING):
        assert not fbnetv3.load_weights(again, model.state_dict()).head
    assert "has 10 classes, the network 3: the trunk is loaded, the head stays" in caplog.text
    assert torch.equal(again.head.weight, head)
    assert torch.equal(again.backbone.stages[3][0].expand[0].weight, model.backbone.stages[3][0].expand[0].weight)


def test_a_classifier_without_head_takes_the_trunk(model):
    again = fbnetv3.create_model(SMALL, num_classes=0)
    assert not fbnetv3.load_weights(again, model.state_dict()).head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("head.conv.bias"), "missing: head.bias$"),
        (lambda d: d.update({"more": torch.ones(1)}), "unknown: more$"),
        (
            lambda d: d.update({"backbone.stages.xif0_0.conv.weight": torch.ones(8, 1, 3, 3)}),
            r"shape: backbone.stages.0.0.0.weight \(8, 1, 3, 3\) instead of \(8, 3, 3, 3\)$",
        ),
        (
            lambda d: [d.pop(key) for key in list(d) if ".xif3_" in key],
            r"missing: backbone.stages.3.0.expand.0.weight, .* and \d+ more$",
        ),
    ],
)
def test_a_mismatch_lists_keys_and_changes_nothing(model, change, message):
    theirs = mobile_vision(model)
    change(theirs)
    again = fbnetv3.create_model(SMALL, num_classes=10)
    before = {key: value.clone() for key, value in again.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        fbnetv3.load_weights(again, theirs)
    assert all(torch.equal(before[key], value) for key, value in again.state_dict().items())


def test_weights_of_another_network_are_named_as_such():
    from torchvision.models import resnet18

    with pytest.raises(WeightsError, match=r"weights of no layout known here .*; it begins with conv1.weight"):
        fbnetv3.load_weights(fbnetv3.create_model(SMALL), resnet18().state_dict())


@pytest.mark.parametrize(
    "checkpoint", [{}, [], 3, {"state_dict": {}}, {"state_dict": 3}, {"a": 1}, {"model": {"a": "b"}}]
)
def test_a_checkpoint_without_tensors(checkpoint):
    with pytest.raises(WeightsError, match="holds no state dict"):
        state_dict_of(checkpoint, "x.pth")


class RunsCode:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": RunsCode(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="loading those could run code: refused"):
        load_checkpoint_file(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


def test_plain_values_beside_the_weights_do_no_harm(model, tmp_path):
    about = {"args": argparse.Namespace(lr=0.1), "best": np.float64(79.5), "epoch": np.int64(3)}
    torch.save({"state_dict": mobile_vision(model), "model_ema": None, **about}, tmp_path / "x.pth")
    assert fbnetv3.load_weights(fbnetv3.create_model(SMALL, num_classes=10), tmp_path / "x.pth").head


def test_a_plain_pickle_that_runs_code_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "trace"), protocol=2))
    with pytest.raises(WeightsError):
        load_checkpoint_file(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or not a checkpoint"),
        (bytes(100), "is damaged or not a checkpoint"),
        (b"hello", "is damaged or not a checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b"\n  <html><body>", "is a web page, not weights"),
        (b"PK\x03\x04 nonsense", "is damaged or not a checkpoint"),
    ],
    ids=["empty", "zeros", "text", "page", "page_with_space", "zip"],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        fbnetv3.load_weights(fbnetv3.create_model(SMALL), tmp_path / "x.pth")


def test_a_truncated_checkpoint(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        fbnetv3.load_weights(model, tmp_path / "x.pth")


def test_a_missing_file(model, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        fbnetv3.load_weights(model, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        fbnetv3.load_weights(model, tmp_path)
