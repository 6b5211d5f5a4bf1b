"""Fused blocks give the same outputs as the blocks in eval mode."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from fbnetv3.arch import get_arch
from fbnetv3.arch.block_specs import MBConvSpec
from fbnetv3.modeling import Trunk
from fbnetv3.modeling.blocks import MBConv
from fbnetv3.modeling.cpu.inference_blocks import FusedConv, FusedMBConv, fuse_blocks


def randomize_statistics(module):
    """Randomize the statistics of BatchNorms, as after training, and set eval mode."""
    torch.manual_seed(0)
    for m in module.modules():
        if getattr(m, "running_mean", None) is not None:
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            if m.weight is not None:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
    return module.eval()


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("arch", ["fbnetv3_a_det", "fbnetv3_a0"])
@torch.inference_mode()
def test_trunks_keep_their_outputs(arch, dtype, tolerance):
    """Test both kinds of blocks: with ReLU and sigmoid gates, and with hard swish and hard sigmoid."""
    trunk = randomize_statistics(Trunk(get_arch(arch))).to(dtype)
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
def test_norms_that_cannot_be_folded_stay(norm):
    unit = randomize_statistics(Conv2dNormActivation(4, 8, 3, 2, norm_layer=norm, activation_layer=nn.ReLU))
    fused, x = fuse_blocks(copy.deepcopy(unit)), torch.randn(2, 4, 9, 7)
    assert isinstance(fused, FusedConv) and isinstance(fused.norm, nn.GroupNorm) == isinstance(
        unit[1], nn.GroupNorm
    )
    assert_close(fused(x), unit(x), 1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(4, c)])
@torch.inference_mode()
def test_the_mean_of_the_output(norm):
    trunk = randomize_statistics(Trunk(get_arch("fbnetv3_a_det"), norm_layer=norm))
    for block, same_size in ((trunk.stages[-1][-1], False), (trunk.stages[-1][1], True)):
        fused = FusedMBConv(copy.deepcopy(block))
        assert fused.has_residual == same_size
        channels = fused.expand.weight.shape[1]
        for shape in ((5, channels, 6, 6), (2, channels, 3, 5), (2, channels, 3, 5), (0, channels, 3, 5)):
            x = torch.randn(shape)
            expected = block(x).mean((2, 3))
            actual = fused.forward_mean(x)
            assert actual.shape == expected.shape
            assert not len(x) or (actual - expected).abs().max() < 1e-5


HALF = [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)]


def large_map(channels):
    """Return a map of 112 x 112 positions of about 6, whose sum is 75,264: more than float16 can represent."""
    torch.manual_seed(0)
    return 6 + 0.1 * torch.randn(2, channels, 112, 112, dtype=torch.float64)


def averaging_block(out_channels):
    """Return a block whose depthwise convolution keeps the size of the values, with squeeze-and-excite."""
    torch.manual_seed(0)
    spec = MBConvSpec(8, out_channels, 8, 3, 1, 1, 8, 8, "hsigmoid", "relu")
    block = randomize_statistics(MBConv(spec)).double()
    nn.init.constant_(block.depthwise[0].weight, 1 / 9)
    block.depthwise[1] = nn.BatchNorm2d(8).double().eval()
    return block


@pytest.mark.parametrize("dtype, tolerance", HALF)
@pytest.mark.parametrize("out_channels", [8, 12])
@torch.inference_mode()
def test_half_precision_squeezes_large_maps(dtype, tolerance, out_channels):
    block, x = averaging_block(out_channels), large_map(8)
    fused = FusedMBConv(copy.deepcopy(block)).to(dtype)
    assert_close(fused(x.to(dtype)).double(), block(x), 4 * tolerance)
    means = fused.forward_mean(x.to(dtype)).double()
    assert_close(means, block(x).mean((2, 3)), 4 * tolerance)


@pytest.mark.parametrize("dtype, tolerance", HALF)
@pytest.mark.parametrize("act", [None, nn.ReLU()])
@torch.inference_mode()
def test_half_precision_means_of_large_maps(dtype, tolerance, act):
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False).double()
    nn.init.constant_(conv.weight, 1 / 9)
    x = large_map(6)
    fused = FusedConv(conv, *([] if act is None else [nn.Identity(), act])).to(dtype)
    sums, positions = fused.forward_sum(x.to(dtype))
    assert_close(sums.double() / positions, conv(x).mean((2, 3)), tolerance)


@torch.inference_mode()
def test_half_precision_by_autocast():
    block, x = averaging_block(8).float(), large_map(8).float()
    fused = FusedMBConv(copy.deepcopy(block))
    with torch.autocast("cpu", torch.float16):
        y, means = fused(x), fused.forward_mean(x)
    assert_close(y.float(), block(x), 1e-2)
    assert_close(means.float(), block(x).mean((2, 3)), 1e-2)


@torch.inference_mode()
def test_shapes_without_values():
    block = averaging_block(12).float()
    assert FusedMBConv(block).to("meta")(torch.empty(2, 8, 5, 7, device="meta")).shape == (2, 12, 5, 7)


@pytest.mark.parametrize("kernel, stride, padding", [(5, 1, 2), (3, 2, 1), (5, 2, 0), (3, 1, 0)])
@torch.inference_mode()
def test_the_sum_of_a_depthwise_convolution(kernel, stride, padding):
    conv = FusedConv(nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False))
    for size in ((9, 7), (5, 5), (6, 8)):
        x = torch.randn(3, 6, *size, dtype=torch.float32)
        sums, positions = conv.forward_sum(x)
        assert positions == conv(x)[0, 0].numel()
        assert_close(sums, conv(x).sum((2, 3)), 1e-5)


@torch.inference_mode()
def test_outputs_are_the_same_without_packed_operators(monkeypatch):
    unit = randomize_statistics(Conv2dNormActivation(4, 8, 3, activation_layer=nn.ReLU))
    fused = {}
    for packs in (False, True):  # on any processor, also where packing is slower
        monkeypatch.setattr("fbnetv3.modeling.cpu.mkldnn_ops.PACKS_WEIGHTS", packs)
        fused[packs] = fuse_blocks(copy.deepcopy(unit))
    assert fused[False]._packed is None
    assert fused[True]._packed is not None
    x = torch.randn(2, 4, 9, 7)
    assert_close(fused[False](x), unit(x), 1e-5)
    assert_close(fused[True](x), unit(x), 1e-5)


def test_blocks_with_their_own_forward_pass_are_unchanged():
    class Doubled(MBConv):
        def forward(self, x):
            return 2 * super().forward(x)

    class Reflected(Conv2dNormActivation):
        pass

    block = get_arch("fbnetv3_a_det").blocks()[1]
    assert isinstance(fuse_blocks(Doubled(block.spec).eval()), Doubled)
    unit = Reflected(4, 8, 3)
    unit[0] = nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")
    assert isinstance(fuse_blocks(unit.eval()), Reflected)


@torch.inference_mode()
def test_a_custom_activation_has_no_fast_path_but_the_same_outputs():
    class Square(nn.ReLU):
        def forward(self, x):
            return x.square()

    unit = randomize_statistics(Conv2dNormActivation(4, 8, 3, activation_layer=Square))
    x = torch.randn(2, 4, 9, 7)
    fused = fuse_blocks(copy.deepcopy(unit))
    assert isinstance(fused, FusedConv) and isinstance(fused.act, Square)
    assert_close(fused(x), unit(x), 1e-5)
