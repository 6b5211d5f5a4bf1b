"""FBNetV3-B with timm's padding against timm's own, with equal weights: the same names, shapes and numbers."""

import copy

import pytest
import torch

import fbnetv3
from tests.modeling.weight_files import randomized

timm = pytest.importorskip("timm")

NAME = "fbnetv3_b_same_padding"
POOLS = ("avg", "max", "avgmax", "catavgmax")


def image(side=64, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def peer():
    """Build timm's network."""
    torch.manual_seed(0)
    return randomized(timm.create_model("fbnetv3_b"))


@pytest.fixture(scope="module")
def model(peer):
    network = fbnetv3.create_model(NAME).eval()
    fbnetv3.load_weights(network, peer.state_dict())
    return network


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_widths(model, peer):
    assert (model.num_features, model.head_hidden_size) == (peer.num_features, peer.head_hidden_size)
    assert (model.num_classes, model.in_chans) == (peer.num_classes, peer.in_chans)


def test_features_and_head(model, peer):
    x = image()
    features = peer.forward_features(x)
    assert_close(model.forward_features(x), features)
    assert_close(model.forward_head(features), peer.forward_head(features))
    assert_close(
        model.forward_head(features, pre_logits=True), peer.forward_head(features, pre_logits=True)
    )
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))


def test_feature_info(model, peer):
    for key in ("num_chs", "reduction"):
        assert [level[key] for level in model.feature_info] == [level[key] for level in peer.feature_info]
    assert all(set(level) >= {"stage", "module"} for level in model.feature_info)


def test_the_modules_of_feature_info_compute_the_maps(model):
    maps = {}
    handles = [
        model.get_submodule(level["module"]).register_forward_hook(
            lambda module, inputs, y, name=level["module"]: maps.update({name: y})
        )
        for level in model.feature_info
    ]
    _, expected = model.forward_intermediates(image())
    assert all(torch.equal(a, b) for a, b in zip(maps.values(), expected, strict=True))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("indices", [None, 2, [0, 3], [-1, ], (1, -2)])  # fmt: skip
def test_intermediates(model, peer, indices):
    x = image()
    final, maps = model.forward_intermediates(x, indices)
    expected_final, expected_maps = peer.forward_intermediates(x, indices)
    assert_close(final, expected_final)
    assert len(maps) == len(expected_maps)
    for actual, expected in zip(maps, expected_maps, strict=True):
        assert_close(actual, expected)


def test_intermediates_can_stop_early(model, peer):
    options = {"indices": [1], "stop_early": True, "intermediates_only": True}
    assert_close(
        model.forward_intermediates(image(), **options)[0],
        peer.forward_intermediates(image(), **options)[0],
    )


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_feature_maps(peer, output_stride):
    """timm's last map is that after the last stage's expansion; `features_only` ends in the one before."""
    expected = timm.create_model("fbnetv3_b", features_only=True, output_stride=output_stride).eval()
    expected.load_state_dict(peer.state_dict(), strict=False)
    before_expansion = []
    expected.blocks[5].register_forward_hook(lambda module, inputs, y: before_expansion.append(y))
    model = fbnetv3.create_model(NAME, features_only=True, output_stride=output_stride).eval()
    fbnetv3.load_weights(model, peer.state_dict())
    x = image()
    *maps, last = model(x)
    for a, b in zip(maps, expected(x), strict=False):
        assert_close(a, b)
    assert_close(last, before_expansion[0])
    assert model.feature_info.reduction() == expected.feature_info.reduction()
    assert model.feature_info.channels()[:4] == expected.feature_info.channels()[:4]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_classifier(peer, output_stride):
    """Its features are timm's with the same output stride."""
    expected = timm.create_model("fbnetv3_b", features_only=True, output_stride=output_stride).eval()
    expected.load_state_dict(peer.state_dict(), strict=False)
    model = fbnetv3.create_model(NAME, output_stride=output_stride).eval()
    fbnetv3.load_weights(model, peer.state_dict())
    features = model.forward_features(image())
    assert features.shape[2:] == (64 // output_stride, 64 // output_stride)
    assert_close(features, expected(image())[-1])


@pytest.mark.parametrize("out_indices", [(1, 2, 3), [0, -2], (2,)])
def test_chosen_feature_maps(peer, out_indices):
    expected = timm.create_model("fbnetv3_b", features_only=True, out_indices=out_indices).eval()
    expected.load_state_dict(peer.state_dict(), strict=False)
    model = fbnetv3.create_model(NAME, features_only=True, out_indices=out_indices).eval()
    fbnetv3.load_weights(model, peer.state_dict())
    for actual, peers in zip(model(image()), expected(image()), strict=True):
        assert_close(actual, peers)
    for accessor in ("channels", "reduction"):
        expected_values = getattr(expected.feature_info, accessor)()
        assert getattr(model.feature_info, accessor)() == expected_values
        assert getattr(model.feature_info, accessor)([3, 0]) == getattr(expected.feature_info, accessor)(
            [3, 0]
        )
        assert getattr(model.feature_info, accessor)(2) == getattr(expected.feature_info, accessor)(2)


@pytest.mark.parametrize("global_pool", POOLS)
def test_global_pools(global_pool):
    torch.manual_seed(0)
    peer = randomized(timm.create_model("fbnetv3_b", global_pool=global_pool))
    model = fbnetv3.create_model(NAME, global_pool=global_pool).eval()
    fbnetv3.load_weights(model, peer.state_dict())
    assert_close(model(image()), peer(image()))


def test_no_global_pool():
    torch.manual_seed(0)
    peer = randomized(timm.create_model("fbnetv3_b", global_pool="", num_classes=0))
    model = fbnetv3.create_model(NAME, global_pool="", num_classes=0).eval()
    fbnetv3.load_weights(model, peer.state_dict())
    assert_close(model(image()), peer(image()))
    assert model(image()).shape == (2, 1984, 2, 2)


@pytest.mark.parametrize(("num_classes", "global_pool"), [(7, None), (0, None), (0, ""), (5, "max")])
def test_reset_classifier(model, peer, num_classes, global_pool):
    model, peer = copy.deepcopy(model), copy.deepcopy(peer)
    for network in (model, peer):
        network.reset_classifier(num_classes, global_pool)
    if num_classes:
        head = peer.get_classifier()
        model.get_classifier().load_state_dict({"weight": head.weight[:, :, None, None], "bias": head.bias})
    assert model.num_classes == peer.num_classes
    assert_close(model(image()), peer(image()))


@pytest.mark.parametrize("in_chans", [1, 2, 4, 5])
def test_input_channels(peer, in_chans, monkeypatch):
    """Adapted weights give the outputs of timm's network with weights that timm adapts."""
    state = peer.state_dict()
    overlay = {"state_dict": state}
    expected = timm.create_model(
        "fbnetv3_b", pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay
    ).eval()
    model = fbnetv3.create_model(NAME, in_chans=in_chans).eval()
    fbnetv3.load_weights(model, state, adapt_input=True)
    assert_close(model(image(channels=in_chans)), expected(image(channels=in_chans)))


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_parameters(model, peer, coarse):
    """Blocks form the same groups, from the stem to the head; stages are those of each project."""
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse))
    expected = group_parameters(peer, peer.group_matcher(coarse))
    assert len(groups) == (len(expected) if not coarse else len(model.backbone.stages) + 1)
    if not coarse:
        sizes = {i: len(names) for i, names in groups.items()}
        sizes[0] -= 1  # the stem's bias
        assert sizes == {i: len(names) for i, names in expected.items()}
    assert groups[max(groups)] == [
        "backbone.stages.6.0.project.weight",
        "head.weight",
        "head.bias",
    ]
    assert groups[0][0] == "backbone.stages.0.0.0.weight"


def test_layer_wise_decay(model, peer):
    from timm.optim import param_groups_layer_decay

    scales = [
        sorted({g["lr_scale"] for g in param_groups_layer_decay(m, layer_decay=0.8)}) for m in (model, peer)
    ]
    assert scales[0] == scales[1]


def test_pruning(model, peer):
    model, peer = copy.deepcopy(model), copy.deepcopy(peer)
    assert (
        model.prune_intermediate_layers([1, -2]) == list(peer.prune_intermediate_layers([1, -2])) == [1, 3]
    )
    assert (model.num_features, model.num_classes) == (peer.num_features, peer.num_classes)
    assert_close(model(image()), peer.forward_features(image()))
    assert len(model.backbone.stages) == 5


def test_the_pretrained_config(model, peer):
    cfg = fbnetv3.create_model("fbnetv3_b_same_padding").default_cfg
    expected = timm.get_pretrained_cfg("fbnetv3_b").to_dict()
    for key in ("num_classes", "mean", "std", "interpolation", "tag"):
        assert cfg[key] == expected[key]
    assert cfg["input_size"] == expected["test_input_size"]
    assert cfg["crop_pct"] == pytest.approx(
        expected["crop_pct"], abs=0.002
    )  # 269 of 256 / 0.95 = 269.47 pixels
    assert cfg["url"].rpartition("/")[2] == expected["url"].rpartition("/")[2]
    assert model.get_submodule(cfg["first_conv"]).weight.shape == peer.conv_stem.weight.shape
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg == fbnetv3.create_model("fbnetv3_b_same_padding").pretrained_cfg
