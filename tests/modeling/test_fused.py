"""Fused blocks give what the blocks give, in eval mode."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from fbnetv3.arch import get_arch
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.cpu.inference_blocks import FusedConv, FusedMBConv, fuse_blocks


def unsettled(module):
    """A module whose BatchNorms have statistics of their own, as after a training."""
    torch.manual_seed(0)
    for m in module.modules():
        if getattr(m, "running_mean", None) is not None:
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            if m.weight is not None:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
    return module.eval()


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("arch", ["fbnetv3_a_det", "fbnetv3_a0"])
@torch.inference_mode()
def test_trunks_keep_their_outputs(arch, dtype, tolerance):
    """Both kinds of blocks: ReLU and sigmoid gates, hard-swish and hard sigmoid; one image, several, and none."""
    trunk = unsettled(Trunk(get_arch(arch))).to(dtype)
    fused = fuse_blocks(copy.deepcopy(trunk))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for shape in ((1, 3, 64, 96), (3, 3, 33, 40)):
        x = torch.randn(shape, dtype=dtype)
        before = x.clone()
        assert_close(fused(x), trunk(x), tolerance)
        assert torch.equal(x, before)
    assert fused(torch.zeros(0, 3, 64, 64, dtype=dtype)).shape[0] == 0


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(2, c), lambda c: nn.BatchNorm2d(c, affine=False)])
@torch.inference_mode()
def test_norms_that_are_no_batchnorm_stay(norm):
    unit = unsettled(Conv2dNormActivation(4, 8, 3, 2, norm_layer=norm, activation_layer=nn.ReLU))
    fused, x = fuse_blocks(copy.deepcopy(unit)), torch.randn(2, 4, 9, 7)
    assert isinstance(fused, FusedConv) and isinstance(fused.norm, nn.GroupNorm) == isinstance(unit[1], nn.GroupNorm)
    assert_close(fused(x), unit(x), 1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(4, c)])
@torch.inference_mode()
def test_the_average_may_go_first(norm):
    trunk = unsettled(Trunk(get_arch("fbnetv3_a_det"), norm_layer=norm))
    for block, same_size in ((trunk.stages[-1][-1], False), (trunk.stages[-1][1], True)):
        fused = FusedMBConv(copy.deepcopy(block))
        assert fused.has_residual == same_size
        channels = fused.expand.weight.shape[1]
        for shape in ((5, channels, 6, 6), (2, channels, 3, 5), (2, channels, 3, 5), (0, channels, 3, 5)):
            x = torch.randn(shape)
            expected = block(x).mean((2, 3))
            found = fused.pooled(x)
            assert found.shape == expected.shape and (not len(x) or (found - expected).abs().max() < 1e-5)


@pytest.mark.parametrize("kernel, stride, padding", [(5, 1, 2), (3, 2, 1), (5, 2, 0), (3, 1, 0)])
@torch.inference_mode()
def test_the_sum_of_a_depthwise_convolution_without_computing_it(kernel, stride, padding):
    conv = FusedConv(nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False))
    for size in ((9, 7), (5, 5), (6, 8)):
        x = torch.randn(3, 6, *size, dtype=torch.float32)
        found, places = conv.summed(x)
        assert places == conv(x)[0, 0].numel()
        assert_close(found, conv(x).sum((2, 3)), 1e-5)


@torch.inference_mode()
def test_without_the_packed_operators_it_works_the_same(monkeypatch):
    unit = unsettled(Conv2dNormActivation(4, 8, 3, activation_layer=nn.ReLU))
    with monkeypatch.context() as patch:
        patch.setattr("fbnetv3.modeling.cpu.inference_blocks._PACKS", False)
        plain = fuse_blocks(copy.deepcopy(unit))
    assert plain._packed is None
    x = torch.randn(2, 4, 9, 7)
    assert_close(plain(x), unit(x), 1e-5)
    assert torch.allclose(plain(x), fuse_blocks(copy.deepcopy(unit))(x), atol=1e-5)
