"""The depthwise convolution equals torch's: outputs, gradients, gradients of gradients."""

import itertools

import pytest
import torch
from torch import nn

from fbnetv3.modeling.cpu import depthwise
from fbnetv3.modeling.cpu.depthwise import DepthwiseConv2d

SHAPES = [
    (kernel, stride, padding, height, width)
    for kernel, stride, padding in itertools.product((5, 7), (1, 2, 3), range(5))
    for height, width in ((7, 1), (7, 2), (8, 7), (9, 12))
    if min(height, width) + 2 * padding >= kernel
]


def pair(kernel, stride, padding, channels=16, **arguments):
    """Build our layer and torch's with the same weights."""
    torch.manual_seed(0)
    reference = nn.Conv2d(
        channels, channels, kernel, stride, padding, groups=channels, bias=False, **arguments
    )
    conv = DepthwiseConv2d(
        channels, channels, kernel, stride, padding, groups=channels, bias=False, **arguments
    )
    conv.load_state_dict(reference.state_dict())
    return conv, reference


def images(height, width, channels=16):
    torch.manual_seed(1)
    return torch.randn(3, channels, height, width).to(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture
def workaround_calls(monkeypatch):
    """Record the calls of the fast weight gradient."""
    calls = []
    original = depthwise._weight_gradient
    monkeypatch.setattr(depthwise, "_weight_gradient", lambda *a: calls.append(1) or original(*a))
    return calls


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), SHAPES)
def test_gradients_equal_torchs(workaround_calls, kernel, stride, padding, height, width):
    results = []
    for conv in pair(kernel, stride, padding):
        x = images(height, width)
        y = conv(x)
        y.mul(torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
        results.append((y.detach(), x.grad, conv.weight.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(workaround_calls) == 1


def test_gradients_of_gradients(workaround_calls):
    results = []
    for conv in pair(5, 2, 2):
        x = images(8, 7)
        (dx,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        results.append((x.grad, conv.weight.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def test_only_requested_gradients_are_computed():
    conv = pair(5, 1, 2)[0]
    x = images(6, 6).detach()
    conv(x).sum().backward()
    assert conv.weight.grad is not None and x.grad is None
    frozen = pair(5, 1, 2)[0].requires_grad_(False)
    x = images(6, 6)
    frozen(x).sum().backward()
    assert frozen.weight.grad is None and x.grad is not None


@pytest.mark.parametrize(
    "case", ["contiguous", "double", "autocast", "narrow", "no grad", "dilated", "reflect"]
)
def test_other_cases_are_left_to_torch(workaround_calls, case):
    extra = {"dilated": {"dilation": 2}, "reflect": {"padding_mode": "reflect"}}.get(case, {})
    conv, reference = pair(3 if case == "narrow" else 5, 1, 2, **extra)
    x = images(9, 9).detach()
    if case == "contiguous":
        x = x.contiguous()
    if case == "double":
        conv, reference, x = conv.double(), reference.double(), x.double()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        torch.set_grad_enabled(case != "no grad"),
    ):
        y = conv(x)
        expected = reference(x)
    assert torch.equal(y, expected)
    if case != "no grad":
        y.float().sum().backward()
    assert not workaround_calls
