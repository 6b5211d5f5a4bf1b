"""The networks in timm: names, weights, feature maps, data, training, and a U-Net of segmentation_models_pytorch."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fbnetv3
from fbnetv3.arch import adapt_to_small_images, get_arch
from fbnetv3.utils.downloads import cached_path
from tests.modeling.weight_files import mobile_vision, randomized

timm = pytest.importorskip("timm")
import fbnetv3.timm as registered  # noqa: E402

DIGITS = "fbnetv3_digits"


def image(side=64, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_importing_registers_every_classifier_and_leaves_timms_own():
    """In a process of its own, where a warning about an overwritten name would be an error."""
    code = """
import warnings; warnings.simplefilter("error")
import timm; before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
import fbnetv3.timm, fbnetv3
added = set(timm.list_models()) - set(before)
assert {name: timm.model_entrypoint(name) for name in before} == before
own = {name for name in ("fbnetv3_b", "fbnetv3_d", "fbnetv3_g")}
assert added == set(fbnetv3.list_models()) - own | {"fb_" + name for name in own}, added
from fbnetv3.timm import *
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_timm():
    code = "import sys; sys.modules['timm'] = None; import fbnetv3.timm"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.endswith("MissingPackageError: fbnetv3.timm needs timm: pip install timm\n")


def test_pretrained_names():
    assert timm.list_models("fbnetv3_?", pretrained=True) == [
        *("fbnetv3_a.fb_in1k", "fbnetv3_b.ra2_in1k", "fbnetv3_c.fb_in1k", "fbnetv3_d.ra2_in1k"),
        *("fbnetv3_e.fb_in1k", "fbnetv3_f.fb_in1k", "fbnetv3_g.ra2_in1k"),
    ]
    assert timm.list_models("fb_*", pretrained=True) == [
        *("fb_fbnetv3_b.fb_in1k", "fb_fbnetv3_d.fb_in1k", "fb_fbnetv3_d.ra2_in1k"),
        *("fb_fbnetv3_g.fb_in1k", "fb_fbnetv3_g.ra2_in1k"),
    ]
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(fb_in22k\) for fbnetv3_a"):
        timm.create_model("fbnetv3_a.fb_in22k")


@pytest.mark.parametrize("name", ["fbnetv3_a.fb_in1k", "fb_fbnetv3_d.fb_in1k"])
def test_pretrained_weights_are_those_of_the_zoo(name, cache):
    arch = name.removeprefix("fb_").partition(".")[0]
    published = randomized(fbnetv3.create_model(arch))
    path = cached_path(fbnetv3.model_zoo.entry_for_arch(arch).weights)
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": mobile_vision(published), "model_ema": None}, path)
    model = timm.create_model(name, pretrained=True).eval()
    x = image()
    assert torch.equal(model(x), published(x))
    gray = timm.create_model(name, pretrained=True, in_chans=1, num_classes=0).eval()
    expected = fbnetv3.create_model(arch, pretrained=True, in_chans=1, num_classes=0).eval()
    assert torch.equal(gray(x[:, :1]), expected(x[:, :1]))
    assert timm.create_model(name, pretrained=True, num_classes=7)(x).shape == (2, 7)


def test_weights_of_ones_own(tmp_path):
    """A file in timm's layout, adapted by timm's own code."""
    peer = randomized(timm.create_model("fbnetv3_b"))
    torch.save({"state_dict": peer.state_dict()}, tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    options = {"pretrained": True, "in_chans": 1, "pretrained_cfg_overlay": overlay}
    model = timm.create_model("fbnetv3_b_same_padding", **options).eval()
    expected = timm.create_model("fbnetv3_b", **options).eval()
    x = image(channels=1)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-3, atol=1e-5)


def test_data_config():
    config = timm.data.resolve_model_data_config(timm.create_model("fbnetv3_a"))
    transform = timm.data.create_transform(**config)
    assert (config["input_size"], config["interpolation"]) == ((3, 224, 224), "bilinear")
    assert transform.transforms[0].size == 242  # the short side that the authors resize to
    config = timm.data.resolve_model_data_config(timm.create_model("fb_fbnetv3_d.ra2_in1k"))
    assert config["input_size"] == (3, 256, 256)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_feature_maps_are_timms(output_stride):
    peer = timm.create_model(
        "fbnetv3_b", features_only=True, output_stride=output_stride, out_indices=(1, 3, 4)
    )
    model = timm.create_model(
        "fbnetv3_b_same_padding", features_only=True, output_stride=output_stride, out_indices=(1, 3, 4)
    )
    assert model.feature_info.channels() == peer.feature_info.channels() == [24, 120, 1344]
    assert model.feature_info.reduction() == peer.feature_info.reduction()
    assert [y.shape for y in model(image())] == [y.shape for y in peer(image())]


def test_feature_maps_need_no_head():
    model = timm.create_model("fbnetv3_a", features_only=True)
    sum(y.sum() for y in model(image())).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    assert len(timm.create_model(DIGITS, features_only=True)(image(channels=1))) == 4  # strides 2 to 16


@pytest.mark.parametrize("feature_cls", ["hook", "fx"])
def test_timms_other_ways_to_features(feature_cls):
    options = {"pretrained": True, "features_only": True, "out_indices": (0, 2)}
    model = timm.create_model(DIGITS, feature_cls=feature_cls, **options).eval()
    expected = timm.create_model(DIGITS, **options).eval()
    for a, b in zip(model(image(channels=1)), expected(image(channels=1)), strict=True):
        assert torch.equal(a, b)


def test_training_as_timms_script_does(tmp_path):
    """Arguments and calls of timm's train.py: --drop, --drop-path, --gp, --bn-momentum, --layer-decay and others."""
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model(
        DIGITS, num_classes=4, in_chans=3, drop_rate=0.1, drop_path_rate=0.1, drop_block_rate=None,
        global_pool="avgmax", bn_momentum=0.2, bn_eps=1e-3, scriptable=False, checkpoint_path="",
    )  # fmt: skip
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.2, 1e-3)}
    with torch.no_grad():  # --head-init-scale, --head-init-bias
        model.get_classifier().weight.mul_(0.5)
        model.get_classifier().bias.fill_(-1.0)
    model.set_grad_checkpointing(enable=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=1e-4, layer_decay=0.9)
    ema = ModelEmaV3(model, decay=0.5)
    x, target = image(), torch.tensor([1, 3])
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.pth")
    loaded = timm.create_model(
        DIGITS,
        num_classes=4,
        global_pool="avgmax",
        bn_eps=1e-3,
        in_chans=3,
        checkpoint_path=tmp_path / "last.pth",
    )
    model.set_grad_checkpointing(enable=False)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_a_network_of_ones_own():
    arch = adapt_to_small_images(get_arch("fbnetv3_a"), name="mine.v1")
    assert registered.register(arch) == registered.register(arch) == "mine_v1"
    model = timm.create_model("mine_v1", num_classes=3)
    assert model(image(32)).shape == (2, 3)
    assert not timm.list_models("mine*", pretrained=True)


@pytest.mark.parametrize("name", [DIGITS, "fbnetv3_a", "fbnetv3_b_same_padding"])
def test_a_unet_learns(name):
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
    )
    torch.manual_seed(0)
    depth = 4 if name == DIGITS else 5
    model = smp.Unet(
        f"tu-{name}",
        encoder_weights=None,
        encoder_depth=depth,
        decoder_channels=(32, 24, 16, 8, 8)[:depth],
        classes=1,
    )
    # Images of noise with a bright square, and the square as the mask
    x = 0.3 * torch.randn(4, 3, 64, 64)
    mask = torch.zeros(4, 1, 64, 64)
    for i in range(4):
        mask[i, :, 8 * i : 8 * i + 24, 16 : 16 + 8 * (i + 1)] = 1
    x += mask
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = F.binary_cross_entropy_with_logits(model(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = model(x) > 0
    intersection = (predicted & (mask > 0)).sum() / (predicted | (mask > 0)).sum()
    assert intersection > 0.8
    trunk_grads = [p.grad.abs().sum() for p in model.encoder.parameters() if p.grad is not None]
    assert sum(g > 0 for g in trunk_grads) > 0.9 * len(trunk_grads)
