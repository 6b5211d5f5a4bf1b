"""Options that networks share with timm's: what they do on every network, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.arch import ArchDef, Row, Stage
from fbnetv3.errors import UsageError, WeightsError
from fbnetv3.modeling.timm_conventions.input_conv import adapt_input_conv
from tests.modeling.weight_files import randomized

SMALL = "fbnetv3_digits"
WITHOUT_MBPOOL = ArchDef(
    "mine", (Stage((Row("conv", 8, kernel=3, stride=2), Row("mbconv", 16, kernel=3, expansion=2, stride=2))),), 16, 16
)  # fmt: skip


def image(side=32, n=2, channels=3):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def build(name=SMALL, **arguments):
    torch.manual_seed(0)
    return randomized(fbnetv3.create_model(name, num_classes=5, **arguments))


@pytest.mark.parametrize(
    "arch", ["fbnetv3_a", "fbnetv3_g", "fbnetv3_a0_cifar", SMALL, WITHOUT_MBPOOL], ids=str
)
def test_features_and_head_make_the_network(arch):
    model = build(arch)
    x = image(64)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, features) and torch.equal(maps[-1], features)
    assert [m.shape[1] for m in maps] == [level["num_chs"] for level in model.feature_info]


@pytest.mark.parametrize("global_pool", ["avg", "max", "avgmax", "catavgmax"])
def test_pooling_without_an_mbpool(global_pool):
    model = build(WITHOUT_MBPOOL, global_pool=global_pool)
    features = model.forward_features(image(16))
    avg, maximum = features.mean((2, 3)), features.amax((2, 3))
    expected = {
        "avg": avg,
        "max": maximum,
        "avgmax": (avg + maximum) / 2,
        "catavgmax": torch.cat([avg, maximum], 1),
    }[global_pool]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
    model.reset_classifier(3, "catavgmax")
    assert model(image(16)).shape == (2, 3)


def test_no_pooling_gives_a_map_of_logits():
    model = build()
    dense = build(global_pool="")
    dense.load_state_dict(model.state_dict())
    assert dense(image(64)).shape == (2, 5, 4, 4)
    assert dense(image(16)).shape == (2, 5, 1, 1)
    assert torch.equal(dense(image(16)).flatten(1), model(image(16)))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["fbnetv3_a", "fbnetv3_d", SMALL])
def test_dilation_keeps_the_size_of_maps(name, output_stride):
    backbone = fbnetv3.create_model(name, features_only=True, output_stride=output_stride).eval()
    sides = [feature_map.shape[-1] for feature_map in backbone(image(64, 1))]
    strides = [stride for stride in (2, 4, 8, 16, 32) if stride <= output_stride]
    dense = sides[len(strides) - 1 :]
    assert len(set(dense)) <= 1
    assert list(backbone.feature_strides) == [min(2 ** (i + 1), output_stride) for i in range(len(sides))]


def test_dilation_keeps_the_outputs_at_the_positions_of_the_stride():
    """Without stride, the network computes the outputs of all shifts of its input; here the shift is 0."""
    row = Row("mbconv", 16, kernel=3, expansion=2, stride=2)
    arch = ArchDef("mine", (Stage((Row("conv", 8, kernel=3, stride=2), row, row, row, row)),), 64, 64)
    model = build(arch)
    dilated = build(arch, output_stride=8)
    expected, actual = model.forward_features(image(256)), dilated.forward_features(image(256))
    assert (expected.shape[-1], actual.shape[-1]) == (8, 32)
    # Away from the border, where dilated convolutions pad more
    torch.testing.assert_close(actual[..., ::4, ::4][..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_stride": 4}, "output_stride: 4 must be one of 8, 16, 32"),
        ({"global_pool": "sum"}, "global_pool: 'sum' must be one of avg, max"),
        ({"out_indices": [0]}, r"out_indices \[0\]: has an effect only with features_only"),
        ({"features_only": True, "out_indices": [4]}, r"out_indices \[4\]: the network has 4 maps; pass a list"),
        ({"features_only": True, "out_indices": 0}, "out_indices 0: the network has 4 maps"),
        ({"features_only": True, "out_indices": [1, -3]}, r"out_indices \[1, -3\]: is empty or names a map twice"),
        ({"features_only": True, "out_indices": []}, r"out_indices \[\]: is empty"),
        ({"pretrained": True, "global_pool": "catavgmax"}, "global_pool 'catavgmax': the weights of digits"),
    ],
)  # fmt: skip
def test_refused_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        fbnetv3.create_model(SMALL, **arguments)


def test_refused_calls():
    model = build()
    with pytest.raises(UsageError, match="output_fmt 'NLC' must be NCHW"):
        model.forward_intermediates(image(), output_fmt="NLC")
    with pytest.raises(UsageError, match="stop_early: needs intermediates_only"):
        model.forward_intermediates(image(), stop_early=True)
    with pytest.raises(UsageError, match="pass global_pool when you create the network"):
        model.reset_classifier(5, "catavgmax")
    with pytest.raises(UsageError, match="num_classes: -1"):
        model.reset_classifier(-1)


def test_maps_come_in_the_order_of_the_indices():
    backbone = fbnetv3.create_model(SMALL, features_only=True, out_indices=(2, 0)).eval()
    assert backbone.feature_strides == (8, 2)
    assert (
        [m.shape[1] for m in backbone(image())]
        == list(backbone.feature_channels)
        == backbone.feature_info.channels()
    )
    assert not any(name.startswith("stages.5") for name in backbone.state_dict())  # not needed
    assert len(backbone.feature_info) == 4 and backbone.feature_info[3]["reduction"] == 16


def test_a_pruned_network_can_get_a_new_head():
    model = build("fbnetv3_a")
    smallest = model.backbone.min_input_size
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert model(image(64)).shape == (2, model.num_features, 8, 8) == (2, 40, 8, 8)
    assert model.backbone.min_input_size == 1 < smallest
    model.reset_classifier(3, "catavgmax")
    assert model(image(64)).shape == (2, 3)


def test_a_new_head_is_on_the_device_and_in_the_type_of_the_network():
    model = build().double().train()
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64 and model.head.training
    assert model(image().double()).shape == (2, 3)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointed_activations_give_the_same_gradients_and_statistics(features_only):
    def step(model):
        torch.manual_seed(1)
        outputs = model(image(n=4))
        sum((y**2).mean() for y in (outputs if features_only else [outputs])).backward()
        return [*(p.grad for p in model.parameters()), *model.buffers()]

    model = build(drop_path_rate=0.3, features_only=features_only).train()
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    for expected, actual in zip(step(model), step(saving), strict=True):
        torch.testing.assert_close(actual, expected)


def test_checkpointed_activations_are_not_kept():
    def saved_elements(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(image(64))
        return sum(sizes)

    model = build().train()
    kept = saved_elements(model)
    model.set_grad_checkpointing()
    assert saved_elements(model) < kept / 10
    model.set_grad_checkpointing(False)
    assert saved_elements(model) == kept


@pytest.mark.parametrize(("in_chans", "expected"), [
    (1, [[6.0]]),
    (2, [[1.5, 3.0]]),
    (3, [[1.0, 2.0, 3.0]]),
    (4, [[0.75, 1.5, 2.25, 0.75]]),
    (6, [[0.5, 1.0, 1.5, 0.5, 1.0, 1.5]]),
])  # fmt: skip
def test_adapted_weights(in_chans, expected):
    """For weights 1, 2, 3: their sum, or their repetition times 3 / in_chans."""
    weight = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert adapt_input_conv(weight, in_chans)[..., 0, 0].tolist() == expected
    assert adapt_input_conv(weight.half(), in_chans).dtype == torch.float16


def test_pretrained_weights_for_other_channels():
    gray = fbnetv3.create_model(SMALL, pretrained=True).eval()
    rgb = fbnetv3.create_model(SMALL, pretrained=True, in_chans=3).eval()
    x = image(channels=1)
    torch.testing.assert_close(rgb(x.expand(-1, 3, -1, -1)), gray(x), rtol=1e-4, atol=1e-4)
    backbone = fbnetv3.create_model(SMALL, pretrained=True, in_chans=2, features_only=True).eval()
    features = fbnetv3.create_model(SMALL, pretrained=True, features_only=True).eval()
    torch.testing.assert_close(backbone(x.expand(-1, 2, -1, -1))[0], features(x)[0], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_ones_own(tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    path = tmp_path / "x.pth"
    copied = fbnetv3.create_model(SMALL, num_classes=5, checkpoint_path=path).eval()
    assert torch.equal(copied(image()), model(image()))
    with pytest.raises(UsageError, match="x.pth: has other classes than the network; pass num_classes"):
        fbnetv3.create_model(SMALL, checkpoint_path=path)
    assert fbnetv3.create_model(SMALL, num_classes=3, checkpoint_path=path).num_classes == 3
    with pytest.raises(
        WeightsError, match="x.pth does not fit fbnetv3_digits: shape: backbone.stages.0.0.0"
    ):
        fbnetv3.create_model(SMALL, num_classes=5, in_chans=1, checkpoint_path=path)


@pytest.mark.parametrize("name", ["fbnetv3_a", "fbnetv3_c", "fbnetv3_d", "fbnetv3_e", SMALL])
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_the_smallest_input(name, features_only, output_stride):
    model = fbnetv3.create_model(name, features_only=features_only, output_stride=output_stride).eval()
    trunk = model if features_only else model.backbone
    smallest = trunk.min_input_size
    model(image(smallest))
    if smallest > 1:
        side = smallest - 1
        message = (
            f"{side}x{side} pixels is too small for {name}: resize it to at least {smallest}x{smallest}"
        )
        with pytest.raises(UsageError, match=message):
            model(image(side))
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):  # what torch says
            trunk.stages(image(side))


def test_sizes_that_are_no_multiples_of_the_stride():
    """Maps are rounded up with full padding; A pads its last two strided blocks less."""
    same = fbnetv3.create_model("fbnetv3_b_same_padding", features_only=True).eval()
    assert [m.shape[-1] for m in same(image(225, 1))] == [113, 57, 29, 15, 8]
    assert [m.shape[-1] for m in same(image(224, 1))] == [112, 56, 28, 14, 7]
    own = fbnetv3.create_model("fbnetv3_a", features_only=True).eval()
    assert [m.shape[-1] for m in own(image(224, 1))] == [112, 56, 28, 13, 6]
