"""The cost of a definition equals published figures, fvcore's counts and those of the built network exactly."""

import random
from dataclasses import fields

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

import fbnetv3
from fbnetv3.arch import Cost, compute_cost, get_arch, list_archs
from fbnetv3.errors import UsageError
from fbnetv3.modeling import build_network
from tests.table2 import random_arch

# The published networks, counted on the authors' modules: resolution, resize, BatchNorm parameters, convolution biases,
# convolution weights, MACs of convolutions, MACs of average pools
PUBLISHED = {
    "fbnetv3_a": (224, 242, 46400, 9856, 8542224, 355514328, 1083952),
    "fbnetv3_b": (248, 266, 46400, 9856, 8542224, 460150000, 1400136),
    "fbnetv3_c": (248, 272, 55088, 11592, 9907136, 555578368, 1391536),
    "fbnetv3_d": (248, 277, 56608, 12136, 10237552, 642628864, 1791488),
    "fbnetv3_e": (264, 291, 60496, 12936, 10699464, 759952160, 2094176),
    "fbnetv3_f": (272, 296, 76672, 16416, 13803072, 1178860656, 2783864),
    "fbnetv3_g": (320, 325, 90864, 19408, 16513648, 2125187200, 4469184),
}
PUBLISHED_TOTALS = {"fbnetv3_a0": (224, 6309976, 218578288), "fbnetv3_20g": (256, 104565696, 20392130944)}
# Table 4 of the paper, in millions
TABLE_4 = {"fbnetv3_a": 357, "fbnetv3_c": 557, "fbnetv3_e": 762, "fbnetv3_g": 2100}


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_published_network(name):
    resolution, resize, batchnorm, bias, weight, conv, pool = PUBLISHED[name]
    arch, cost = get_arch(name), fbnetv3.cost(name)
    assert (arch.resolution, arch.resize) == (resolution, resize)
    assert cost.params_by_kind == {"conv_weight": weight, "conv_bias": bias, "batchnorm": batchnorm}
    assert cost.macs_by_kind == {"conv": conv, "avg_pool": pool}
    assert (cost.params, cost.macs) == (batchnorm + bias + weight, conv + pool)


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_equals_the_published_totals(name):
    resolution, params, macs = PUBLISHED_TOTALS[name]
    cost = fbnetv3.cost(name)
    assert (get_arch(name).resolution, cost.params, cost.macs) == (resolution, params, macs)


@pytest.mark.parametrize("name", TABLE_4)
def test_rounds_to_table_4(name):
    digits = -2 if TABLE_4[name] > 1000 else 0
    assert round(fbnetv3.cost(name).macs / 1e6, digits) == TABLE_4[name]


@pytest.mark.parametrize("name", [n for n in list_archs() if n != "fbnetv3_20g"])
def test_equals_fvcore(name):
    model = fbnetv3.create_model(name).eval()
    x = torch.zeros(1, 3, *[get_arch(name).resolution] * 2)
    flops = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = flops.by_operator()
    activations = (
        ActivationCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    )
    cost = fbnetv3.cost(name)
    assert cost.macs_by_kind == {"conv": counted["conv"], "avg_pool": counted["adaptive_avg_pool2d"]}
    assert cost.activations == activations.total()


def measure(model, height, width, in_chans=3):
    """Count a network's parameters by module type, and MACs and activations with forward hooks."""
    count = dict.fromkeys([f.name for f in fields(Cost)], 0)
    total = sum(p.numel() for p in model.parameters())

    def on_conv(module, inputs, output):
        count["macs_conv"] += output[0].numel() // module.out_channels * module.weight.numel()
        count["activations"] += output[0].numel()

    def on_pool(module, inputs, output):
        count["macs_avg_pool"] += inputs[0][0].numel()

    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.Conv2d):
                count["params_conv_weight"] += module.weight.numel()
                count["params_conv_bias"] += 0 if module.bias is None else module.bias.numel()
                module.register_forward_hook(on_conv)
            elif isinstance(module, nn.AdaptiveAvgPool2d):
                module.register_forward_hook(on_pool)
            elif isinstance(module, nn.BatchNorm2d):
                count["params_batchnorm"] += module.weight.numel() + module.bias.numel()
                setattr(parent, name, nn.Identity())  # counted; the shapes stay the same without it
            elif isinstance(module, (nn.Hardswish, nn.Hardsigmoid)):
                setattr(parent, name, nn.Identity())
    model.eval()(torch.empty(1, in_chans, height, width, device="meta"))
    assert total == sum(value for kind, value in count.items() if kind.startswith("params"))
    return Cost(**count)


@pytest.fixture
def uninitialized(monkeypatch):
    """Skip weight initialization: only shapes matter here."""
    monkeypatch.setattr("fbnetv3.modeling.network.init_weights", lambda module: None)
    monkeypatch.setattr(nn.init, "normal_", lambda *args, **kwargs: None)
    monkeypatch.setattr(nn.init, "zeros_", lambda *args, **kwargs: None)
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        monkeypatch.setattr(kind, "reset_parameters", lambda module: None)


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_built_network_for_random_definitions(seed, uninitialized):
    """300 in total, with inputs of various shapes and heads of various sizes."""
    rng = random.Random(seed)
    for i in range(30):
        arch = random_arch(rng, f"random_{seed}_{i}")
        height, width = (arch.resolution,) * 2 if i % 2 else (rng.randint(33, 300), rng.randint(33, 300))
        classes, in_chans = rng.choice([2, 10, 1000]), rng.choice([1, 3])
        with torch.device("meta"):
            model = build_network(arch, num_classes=classes, in_chans=in_chans)
        counted = measure(model, height, width, in_chans)
        cost = compute_cost(arch, (height, width), num_classes=classes, in_chans=in_chans)
        assert {f.name: getattr(cost, f.name) for f in fields(Cost)} == vars(counted)


def test_stages_and_head_add_up():
    cost = fbnetv3.cost("fbnetv3_d")
    total = sum(cost.by_stage(), cost.head)
    assert (total.macs, total.params, total.activations) == (cost.macs, cost.params, cost.activations)
    assert len(cost.by_stage()) == 7


def test_without_a_head():
    assert fbnetv3.cost("fbnetv3_a", num_classes=0).params == 8598480 - 1984 * 1000 - 1000


def test_resolution_as_height_and_width():
    assert fbnetv3.cost("fbnetv3_d", (248, 248)).macs == fbnetv3.cost("fbnetv3_d").macs
    assert fbnetv3.cost("fbnetv3_d", (384, 640)).macs == fbnetv3.cost("fbnetv3_d", (640, 384)).macs


@pytest.mark.parametrize("resolution", [0, -1, 2.5, "224", (0, 224), (1, 2, 3), (224,), True])
def test_rejects_an_invalid_resolution(resolution):
    with pytest.raises(UsageError, match="resolution"):
        fbnetv3.cost("fbnetv3_d", resolution)


@pytest.mark.parametrize(
    "arguments", [{"num_classes": -5}, {"num_classes": "10"}, {"in_chans": 0}, {"in_chans": True}]
)
def test_rejects_invalid_counts(arguments):
    with pytest.raises(UsageError, match=r"(num_classes|in_chans): .* must be (at least|an integer)"):
        fbnetv3.cost("fbnetv3_d", **arguments)


def test_rejects_an_input_that_is_too_small():
    with pytest.raises(UsageError, match="too small"):
        fbnetv3.cost("fbnetv3_b", 8)
