"""Networks that round as int8 does keep their names and weights, and compute as the definition says."""

import copy

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.errors import UsageError
from fbnetv3.modeling.batchnorm_folding import fold_batchnorm
from fbnetv3.modeling.qat.fake_quantizers import fake_quantize_map, fake_quantize_weight
from fbnetv3.modeling.qat.quantized_layers import (
    LearnedInt8,
    count_float_layers,
    fake_quantize,
    read_ranges,
    restore_fake_quantization,
)


@pytest.fixture
def network():
    """The network for digits with random weights and statistics."""
    torch.manual_seed(0)
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


IMAGES = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def observe(model):
    """Let a network observe the images, with its norms in evaluation mode, and return it in evaluation mode."""
    norms = fake_quantize(model)
    model.train()
    for norm in norms:
        norm.eval()
    model(IMAGES)
    return model.eval()


def test_first_layers_with_at_most_a_share_of_the_weights_stay_float():
    shares = (0, 0.01, 0.05, 0.06, 1)
    assert [count_float_layers([1, 2, 3, 94], share) for share in shares] == [0, 1, 2, 3, 4]


def test_a_layer_rounds_its_input_folded_weight_and_output():
    torch.manual_seed(0)
    unit = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
    nn.init.uniform_(unit[1].running_var, 0.5, 2)
    nn.init.normal_(unit[1].running_mean)
    weight, bias = fold_batchnorm(*unit[:2])
    x = torch.randn(2, 3, 8, 8)
    fake_quantize(unit, float_share=0)
    y = unit.train()(x).detach()
    x = fake_quantize_map(x, torch.stack(x.aminmax()))
    z = nn.functional.conv2d(x, fake_quantize_weight(weight), bias)
    # A hard swish is 0 below -3
    expected = nn.functional.hardswish(fake_quantize_map(z, torch.tensor([-3, z.max()])))
    assert torch.allclose(y, expected, atol=1e-6)
    assert unit[1].num_batches_tracked == 0


def test_state_and_gradients(network):
    names, logits = list(network.state_dict()), network(IMAGES)
    quantized = observe(copy.deepcopy(network))
    assert list(quantized.state_dict()) == names
    error = (quantized(IMAGES) - logits).square().mean() / logits.var()
    assert 0 < error < 0.02
    quantized.train()(IMAGES).square().sum().backward()
    without = [name for name, parameter in quantized.named_parameters() if parameter.grad is None]
    assert not without


def test_copies_are_independent(network):
    quantized = observe(network)
    twin = copy.deepcopy(quantized)
    before = quantized(IMAGES)
    for module in twin.modules():
        if hasattr(module, "ends"):
            module.ends.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    assert torch.equal(quantized(IMAGES), before)
    assert read_ranges(twin) != read_ranges(quantized)


def test_ranges_restore_the_rounding(network):
    plain = copy.deepcopy(network)
    assert read_ranges(plain) == {}
    quantized = observe(network)
    ranges = read_ranges(quantized)
    restore_fake_quantization(plain, LearnedInt8(ranges))
    assert torch.equal(plain(IMAGES), quantized(IMAGES)) and read_ranges(plain) == ranges
    with pytest.raises(UsageError, match="ranges of layers that the network does not have: tail"):
        restore_fake_quantization(plain, LearnedInt8({"tail": [0, 1, 0, 1]}))


def test_norms_without_a_convolution_before_them_are_an_error():
    with pytest.raises(
        UsageError, match="needs a convolution before each norm, in an nn.Sequential, which 0 lack"
    ):
        fake_quantize(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))
