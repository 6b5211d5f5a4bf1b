"""Rounding to int8: against the definition, in NumPy."""

import math

import numpy as np
import pytest
import torch

from fbnetv3.modeling.qat.fake_quantizers import MapQuantizer, fake_quantize_map, fake_quantize_weight


@pytest.mark.parametrize("bits, limit", [(8, 127), (7, 64)])
def test_each_output_channel_has_its_own_scale(bits, limit):
    weight = torch.randn(3, 4, 5, 5) * torch.tensor([0.01, 1, 100]).reshape(3, 1, 1, 1)
    rounded = fake_quantize_weight(weight, bits).numpy()
    scale = np.abs(weight.numpy()).max((1, 2, 3), keepdims=True) / limit
    assert np.allclose(rounded, np.rint(weight.numpy() / scale) * scale, rtol=1e-4, atol=0)


def test_maps_have_256_values_that_include_0():
    x = torch.linspace(-2, 6, 1001)
    rounded = fake_quantize_map(x, torch.tensor([-1.0, 4.1]))
    scale = 5.1 / 255
    assert len(rounded.unique()) == 256 and (rounded == 0).any()
    assert torch.allclose(rounded, ((x / scale).round() * scale).clamp(-50 * scale, 205 * scale), atol=1e-5)
    # A range that does not include 0 is extended to it
    assert fake_quantize_map(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])).tolist() == [0, 2]


def test_gradients_ignore_the_rounding_within_the_range():
    x = torch.tensor([-3.0, 0.3, 5.0], requires_grad=True)
    fake_quantize_map(x, torch.tensor([-1.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_ranges_are_moving_averages_within_limits():
    quantizer = MapQuantizer((-3.0, math.inf))
    quantizer(torch.tensor([-9.0, 10.0]))
    assert quantizer.ends.tolist() == [-3, 10]
    quantizer(torch.tensor([-1.0, 20.0]))
    assert quantizer.ends.tolist() == pytest.approx([-2.98, 10.1])
    quantizer.eval()(torch.tensor([-1.0, 99.0]))
    quantizer.train().observing = False
    quantizer(torch.tensor([-1.0, 99.0]))
    assert quantizer.ends.tolist() == pytest.approx([-2.98, 10.1])
    assert not quantizer.state_dict()
