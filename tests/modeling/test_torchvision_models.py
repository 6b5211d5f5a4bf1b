"""torchvision's networks with a recipe's dropout and stochastic depth, and their weights."""

import logging

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fbnetv3.errors import UnknownNameError, UsageError, WeightsError
from fbnetv3.modeling.torchvision_models import (
    TorchvisionArch,
    build_torchvision_model,
    load_torchvision_weights,
)


def build(name, **arguments):
    return build_torchvision_model(
        TorchvisionArch(f"torchvision/{name}"), **{"num_classes": 5, **arguments}
    )


@pytest.mark.parametrize("name", ["alexnet", "resnet34", "resnet50", "densenet201", "resnext101_32x8d"])
def test_table_3(name):
    """Test one network of each kind of code; ResNet-101 and -152 are like ResNet-50."""
    model = build(name).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_an_unknown_network():
    with pytest.raises(
        UnknownNameError, match="unknown network 'torchvision/resnet5': did you mean torchvision/resnet"
    ):
        TorchvisionArch("torchvision/resnet5")


def test_only_rgb():
    with pytest.raises(UsageError, match="needs RGB images, not MODEL.IN_CHANS 1"):
        build("resnet18", in_chans=1)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_existing_dropouts_take_the_rate(rate):
    assert {m.p for m in build("alexnet", drop_rate=rate).modules() if isinstance(m, nn.Dropout)} == {rate}


def test_a_network_without_dropout_gets_one_before_its_last_layer():
    model = build("resnet18", drop_rate=0.5)
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.fc.train()
    assert not torch.equal(model(x), model(x))


def test_a_network_that_cannot_take_dropout(caplog, monkeypatch):
    monkeypatch.setattr("torchvision.models.get_model", lambda name, **options: nn.Conv2d(3, 5, 1))
    build("resnet18")
    assert not caplog.records
    build("resnet18", drop_rate=0.3)
    assert "torchvision/resnet18 has neither dropout nor a linear layer: MODEL.DROP_RATE is" in caplog.text


def test_stochastic_depth_keeps_its_proportions(caplog):
    rates = [
        m.p
        for m in build("efficientnet_b0", drop_path_rate=0.4).modules()
        if isinstance(m, StochasticDepth)
    ]
    assert max(rates) == pytest.approx(0.4) and rates == sorted(rates)
    assert not caplog.records
    build("resnet18", drop_path_rate=0.4)
    assert "torchvision/resnet18 has no stochastic depth" in caplog.text


def test_weights():
    model = build("resnet18")
    other = build("resnet18")
    assert load_torchvision_weights(other, model.state_dict())
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_a_last_layer_without_bias_may_have_different_classes():
    def network(classes):
        layers = nn.Sequential(
            nn.Linear(4, 4), nn.Linear(4, classes, bias=False), nn.BatchNorm1d(3, affine=False)
        )
        layers.num_classes = classes
        return layers

    source, target = network(5), network(3)
    assert not load_torchvision_weights(target, source.state_dict())
    assert torch.equal(source[0].weight, target[0].weight)


def test_weights_with_different_classes_load_the_trunk(caplog):
    model = build("resnet18", num_classes=7)
    other = build("resnet18")
    head = other.fc.weight.clone()
    with caplog.at_level(logging.WARNING):
        assert not load_torchvision_weights(other, model.state_dict())
    assert "the state dict has 7 classes, the network 5: the head is not loaded" in caplog.text
    assert torch.equal(model.conv1.weight, other.conv1.weight) and torch.equal(other.fc.weight, head)


def test_weights_of_a_different_network():
    with pytest.raises(WeightsError, match="the state dict does not fit the network: "):
        load_torchvision_weights(build("resnet18"), build("alexnet").state_dict())


def test_old_names_of_densenet():
    model = build("densenet121")
    other = build("densenet121")
    names = {f".{part}{n}.": f".{part}.{n}." for part in ("norm", "conv") for n in "12"}
    old = {}
    for key, value in model.state_dict().items():
        for new, former in names.items() if "denselayer" in key else ():
            key = key.replace(new, former)
        old[key] = value
    assert old.keys() != model.state_dict().keys()
    assert load_torchvision_weights(other, old)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
