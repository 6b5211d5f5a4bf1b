"""Networks built from architectures: shapes, initialization, stochastic depth, and torch's tools on them."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

import fbnetv3
from fbnetv3.arch import ArchDef, Row, Stage, get_arch
from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES, ConvSpec
from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.modeling import BLOCKS, Trunk, build_network
from fbnetv3.modeling import blocks as modules
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks

SMALL = "fbnetv3_digits"


def image(side=32, n=2, channels=3):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_specs_and_modules_have_the_same_names():
    assert set(BLOCK_SPECS.names()) == set(BLOCKS.names())
    for registry in (ACTIVATIONS, SE_GATES):
        assert all(issubclass(registry.get(name), nn.Module) for name in registry.names())


def test_logits():
    assert fbnetv3.create_model(SMALL, num_classes=7)(image()).shape == (2, 7)


def test_features_without_a_head():
    assert fbnetv3.create_model(SMALL, num_classes=0)(image()).shape == (2, 496)


def test_gray_images():
    assert fbnetv3.create_model(SMALL, in_chans=1, num_classes=3)(image(channels=1)).shape == (2, 3)


def test_a_network_from_a_file(tmp_path):
    from fbnetv3.arch import save_arch

    save_arch(get_arch(SMALL), tmp_path / "x.yaml")
    assert fbnetv3.create_model(tmp_path / "x.yaml").arch == get_arch(SMALL)


def test_a_network_from_an_architecture():
    assert fbnetv3.create_model(get_arch(SMALL), num_classes=5)(image()).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "num_classes: -1"),
        ({"num_classes": 2.5}, "num_classes: 2.5"),
        ({"in_chans": 0}, "in_chans: 0"),
        ({"drop_rate": 1.0}, "drop_rate 1.0 must be in"),
        ({"drop_path_rate": -0.1}, "drop_path_rate -0.1 must be in"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        fbnetv3.create_model(SMALL, **arguments)


def test_an_unknown_name():
    with pytest.raises(UnknownNameError, match="did you mean"):
        fbnetv3.create_model("fbnetv3_digit")


def test_features_at_strides_2_to_32():
    backbone = fbnetv3.create_model("fbnetv3_d", features_only=True).eval()
    maps = backbone(image(256, 1))
    assert backbone.feature_strides == (2, 4, 8, 16, 32)
    assert [
        (1, c, 256 // s, 256 // s)
        for c, s in zip(backbone.feature_channels, backbone.feature_strides, strict=True)
    ] == [tuple(m.shape) for m in maps]


def test_features_equal_the_classifiers_maps():
    model = fbnetv3.create_model(SMALL).eval()
    backbone = fbnetv3.create_model(SMALL, features_only=True).eval()
    fbnetv3.load_weights(backbone, model.state_dict())
    x = image()
    maps = backbone(x)
    assert len(maps) == 4
    for feature_map, stages in zip(maps, (3, 4, 5, 6), strict=True):  # strides 2 (twice), 4, 8, 16
        assert torch.equal(feature_map, model.backbone.stages[:stages](x))


def test_residual_blocks_start_as_identity():
    blocks = [m for m in fbnetv3.create_model(SMALL).modules() if isinstance(m, modules.MBConv)]
    residual = [b for b in blocks if b.has_residual]
    assert residual
    assert all(torch.equal(b.project[1].weight, torch.zeros_like(b.project[1].weight)) for b in residual)
    assert all(b.project[1].weight.min() == 1 for b in blocks if not b.has_residual)
    x = image(8, channels=residual[0].project[0].out_channels)
    assert torch.equal(residual[0].eval()(x), x)


def test_batchnorm_has_the_published_settings():
    norms = [m for m in fbnetv3.create_model(SMALL).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_stochastic_depth_grows_linearly_to_its_rate():
    trunk = Trunk(get_arch("fbnetv3_a"), drop_path_rate=0.2)
    blocks = [block for stage in trunk.stages for block in stage]
    rates = {
        i: b.drop_path.p
        for i, b in enumerate(blocks)
        if isinstance(getattr(b, "drop_path", None), StochasticDepth)
    }
    assert rates
    assert all(rate == pytest.approx(0.2 * i / 30) for i, rate in rates.items())


def test_dropout_before_the_head():
    model = fbnetv3.create_model(SMALL, drop_rate=0.5)
    assert model.dropout.p == 0.5
    x = image()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_a_different_norm_layer():
    model = build_network(get_arch(SMALL), norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(image()).shape == (2, 1000)


def test_channels_last_gives_the_same_result():
    model = fbnetv3.create_model("fbnetv3_a0_cifar", num_classes=10).eval()
    x = image()
    expected = model(x)
    actual = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_export_gives_the_same_result():
    model = fbnetv3.create_model(SMALL, num_classes=10).eval()
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(model, (image(),), dynamic_shapes=({0: batch},))
    x = image(n=5)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-6)


def test_compile_gives_the_same_result():
    model = fbnetv3.create_model(SMALL, num_classes=10).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_parameter():
    model = fbnetv3.create_model(SMALL, num_classes=10)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
    model(image()).logsumexp(1).sum().backward()
    without_gradient = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without_gradient <= {"backbone.stages.0.0.0.bias"}  # a bias before a BatchNorm has no effect


def test_a_custom_block():
    """Register a block: its spec in one registry, its module in the other."""

    @BLOCK_SPECS.register(name="plain")
    class PlainSpec(ConvSpec):
        """The same layers under a different name."""

    @BLOCKS.register(name="plain")
    class Plain(modules.Conv):
        pass

    try:
        stages = (Stage((Row("plain", 8, kernel=3, stride=2), Row("mbpool", 16, expansion=2))),)
        arch = ArchDef("mine", stages, 16, 16)
        assert fbnetv3.create_model(arch, num_classes=4)(image(16)).shape == (2, 4)
        assert fbnetv3.cost(arch).params == sum(p.numel() for p in fbnetv3.create_model(arch).parameters())
    finally:
        BLOCK_SPECS.remove("plain")
        BLOCKS.remove("plain")


@pytest.mark.parametrize("activation", [nn.GELU, nn.LeakyReLU])  # without and with `inplace`
def test_a_custom_activation_and_gate(activation):
    ACTIVATIONS.register(activation, name="mine")
    SE_GATES.register("torch.nn:Tanh", name="tanh")
    try:
        row = Row("mbconv", 8, kernel=3, expansion=2, act="mine", se="tanh")
        arch = ArchDef("mine", (Stage((Row("conv", 8, kernel=3, stride=2), row)),), 16, 16)
        model = fbnetv3.create_model(arch, num_classes=4).eval()
        block = model.backbone.stages[0][1]
        assert type(block.expand[2]) is type(block.se.activation) is activation
        assert type(block.se.scale_activation) is nn.Tanh
        assert fbnetv3.cost(arch).params > 0
        x = image(16)
        torch.testing.assert_close(fuse_blocks(copy.deepcopy(model))(x), model(x))
    finally:
        ACTIVATIONS.remove("mine")
        SE_GATES.remove("tanh")
