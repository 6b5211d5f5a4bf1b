"""torchvision's networks under our recipes."""

import logging

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fbnetv3.errors import UnknownNameError, UsageError, WeightsError
from fbnetv3.modeling.torchvision_models import ExternalArch, build_external, load_external


def build(name, **arguments):
    return build_external(ExternalArch(f"torchvision/{name}"), **{"num_classes": 5, **arguments})


@pytest.mark.parametrize("name", ["alexnet", "resnet34", "resnet50", "densenet201", "resnext101_32x8d"])
def test_table_3(name):
    """Those that share their code (ResNet-101 and -152) need no test of their own."""
    model = build(name).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_an_unknown_network():
    with pytest.raises(
        UnknownNameError, match="unknown network 'torchvision/resnet5': did you mean torchvision/resnet"
    ):
        ExternalArch("torchvision/resnet5")


def test_only_rgb():
    with pytest.raises(UsageError, match="takes RGB images, not MODEL.IN_CHANS 1"):
        build("resnet18", in_chans=1)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropouts_of_its_own_take_the_rate(rate):
    assert {m.p for m in build("alexnet", drop_rate=rate).modules() if isinstance(m, nn.Dropout)} == {rate}


def test_a_network_without_dropout_gets_one_before_its_last_layer():
    model, x = build("resnet18", drop_rate=0.5), torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.fc.train()
    assert not torch.equal(model(x), model(x))


def test_stochastic_depth_keeps_its_proportions(caplog):
    rates = [m.p for m in build("efficientnet_b0", drop_path_rate=0.4).modules() if isinstance(m, StochasticDepth)]
    assert max(rates) == pytest.approx(0.4) and rates == sorted(rates)
    assert not caplog.records
    build("resnet18", drop_path_rate=0.4)
    assert "torchvision/resnet18 has no stochastic depth" in caplog.text


def test_weights():
    model, other = build("resnet18"), build("resnet18")
    assert load_external(other, model.state_dict(), "x.pth")
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_weights_with_other_classes_keep_the_trunk(caplog):
    model, other = build("resnet18", num_classes=7), build("resnet18")
    head = other.fc.weight.clone()
    with caplog.at_level(logging.WARNING):
        assert not load_external(other, model.state_dict(), "x.pth")
    assert "x.pth has another number of classes" in caplog.text
    assert torch.equal(model.conv1.weight, other.conv1.weight) and torch.equal(other.fc.weight, head)


def test_weights_of_another_network():
    with pytest.raises(WeightsError, match="x.pth: does not fit the network; "):
        load_external(build("resnet18"), build("alexnet").state_dict(), "x.pth")


def test_densenets_old_names():
    model, other = build("densenet121"), build("densenet121")
    names = {f".{part}{n}.": f".{part}.{n}." for part in ("norm", "conv") for n in "12"}
    old = {}
    for key, value in model.state_dict().items():
        for new, former in names.items() if "denselayer" in key else ():
            key = key.replace(new, former)
        old[key] = value
    assert old.keys() != model.state_dict().keys()
    assert load_external(other, old, "x.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
