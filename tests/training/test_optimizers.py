"""Optimizers."""

import sys
from copy import deepcopy

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

import fbnetv3
from fbnetv3.config import get_cfg
from fbnetv3.config.recipe import OPTIMIZERS
from fbnetv3.errors import MissingPackageError, UsageError, UserError
from fbnetv3.training.optimizers import is_fused, keep_implementation
from fbnetv3.training.solver import optimizer_from_config


def build(name, model=None, **solver):
    cfg = get_cfg()
    cfg.SOLVER.merge_from_other_cfg(CfgNode({"OPTIMIZER": name, "LR_BATCH_SIZE": 0, **solver}))
    return optimizer_from_config(cfg, model or nn.Linear(2, 2))


def test_sgd():
    optimizer = build("sgd", LR=0.1, MOMENTUM=0.8, NESTEROV=True, WEIGHT_DECAY=0.01)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.1,
        0.8,
        True,
        0.01,
    )


RMSPROP = {"LR": 0.02, "MOMENTUM": 0.8, "RMSPROP_ALPHA": 0.7}


def test_rmsprop():
    optimizer = build("rmsprop", **RMSPROP, WEIGHT_DECAY=0.01, RMSPROP_EPS=0.1)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [group[key] for key in ("lr", "momentum", "alpha", "eps", "weight_decay")] == [
        0.02,
        0.8,
        0.7,
        0.1,
        0.01,
    ]


def test_rmsprop_tf_is_timms(monkeypatch):
    timm_optim = pytest.importorskip("timm.optim")
    optimizer = build("rmsprop_tf", **RMSPROP, RMSPROP_EPS=1e-3)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, timm_optim.RMSpropTF)
    assert [group[key] for key in ("lr", "momentum", "alpha", "eps")] == [0.02, 0.8, 0.7, 1e-3]
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(
        MissingPackageError, match="SOLVER.OPTIMIZER rmsprop_tf needs timm: pip install timm"
    ):
        build("rmsprop_tf")


def test_norms_and_biases_without_weight_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    matrices, vectors = build("sgd", model, WEIGHT_DECAY=0.01, DECAY_NORM_BIAS=False).param_groups
    assert [p.ndim for p in matrices["params"]] == [4] and matrices["weight_decay"] == 0.01
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1] and vectors["weight_decay"] == 0


def test_a_registered_optimizer_gets_the_settings_that_it_accepts():
    @OPTIMIZERS.register(name="plain_adam")
    def build_plain_adam(groups, lr, *, eps):
        return torch.optim.Adam(groups, lr, eps=eps)

    try:
        cfg = get_cfg()
        cfg.SOLVER.OPTIMIZER = "plain_adam"
        cfg.SOLVER.RMSPROP_EPS = 0.125
        optimizer = optimizer_from_config(cfg, nn.Linear(2, 2))
        assert isinstance(optimizer, torch.optim.Adam) and optimizer.param_groups[0]["eps"] == 0.125
        cfg.SOLVER.OPTIMIZER = "plain_adm"
        message = "SOLVER.OPTIMIZER: unknown optimizer 'plain_adm': did you mean plain_adam?"
        with pytest.raises(UsageError, match=message):
            optimizer_from_config(cfg, nn.Linear(2, 2))
    finally:
        OPTIMIZERS.remove("plain_adam")


def test_adamw():
    optimizer = build("adamw", LR=1e-3, WEIGHT_DECAY=0.05, ADAM_BETAS=[0.8, 0.99], ADAM_EPS=1e-6)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group[key] for key in ("lr", "betas", "eps", "weight_decay")] == [1e-3, (0.8, 0.99), 1e-6, 0.05]


def test_learning_rates_scale_with_the_batch_size():
    def base(scaling):
        return build("sgd", LR=0.1, LR_BATCH_SIZE=64, LR_SCALING=scaling).param_groups[0]["lr"]

    assert base("linear") == pytest.approx(0.4) and base("sqrt") == pytest.approx(0.2)  # BATCH_SIZE is 256


@pytest.mark.parametrize(("name", "can_be_fused"), [("sgd", True), ("adamw", True), ("rmsprop", False)])
def test_updates_are_fused_on_a_gpu(name, can_be_fused, monkeypatch):
    assert not is_fused(build(name))
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    assert is_fused(build(name)) == can_be_fused


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("saved_on_gpu", [True, False])
def test_a_state_can_be_loaded_on_a_device_that_computes_differently(name, saved_on_gpu):
    def take_step(optimizer, model):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()

    def make(fused, seed=0):
        torch.manual_seed(seed)
        model = nn.Linear(2, 2)
        settings = {
            "sgd": {"momentum": 0.9, "nesterov": True},
            "adamw": {"betas": (0.9, 0.99), "adam_eps": 1e-8},
        }
        return OPTIMIZERS.get(name)(model.parameters(), 0.1, fused=fused, **settings[name]), model

    (saved, trained), (loaded, copy) = make(saved_on_gpu), make(not saved_on_gpu, seed=1)
    take_step(saved, trained)
    copy.load_state_dict(trained.state_dict())
    keep_implementation(loaded)
    loaded.load_state_dict(deepcopy(saved.state_dict()))
    assert is_fused(loaded) != saved_on_gpu
    take_step(saved, trained), take_step(loaded, copy)
    torch.testing.assert_close(copy.weight, trained.weight)


def small_network():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1)


def scale_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def test_factors_of_trunk_and_head():
    model = small_network()
    scales = scale_by_name(model, build("sgd", model, TRUNK_LR_FACTOR=0.1, HEAD_LR_FACTOR=2.0).param_groups)
    assert {name: scale for name, scale in scales.items() if scale != 0.1} == {
        "head.weight": 2.0,
        "head.bias": 2.0,
    }


def test_layer_decay_is_timms():
    param_groups = pytest.importorskip("timm.optim._param_groups")
    model = small_network()
    blocks = r"^backbone\.stages\.([1-9])\.(\d+)"
    model.group_matcher = lambda coarse: {"stem": r"^backbone\.stages\.0", "blocks": blocks}
    expected = param_groups.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    groups = build("adamw", model, WEIGHT_DECAY=0.05, LAYER_DECAY=0.75, DECAY_NORM_BIAS=False).param_groups
    assert scale_by_name(model, groups) == pytest.approx(scale_by_name(model, expected))
    decays = {id(p): group["weight_decay"] for group in expected for p in group["params"]}
    assert all(decays[id(p)] == group["weight_decay"] for group in groups for p in group["params"])


def test_frozen_parameters_are_left_out():
    model = small_network()
    model.backbone.requires_grad_(False)
    (group,) = build("adamw", model).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.head.parameters()}
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="MODEL.FREEZE leaves nothing to train"):
        build("adamw", model)


def test_timms_optimizers_by_name(monkeypatch):
    timm_optim = pytest.importorskip("timm.optim")
    optimizer = build("timm/lion", LR=1e-4, WEIGHT_DECAY=0.1, ADAM_BETAS=[0.9, 0.98])
    (group,) = optimizer.param_groups
    assert type(optimizer).__name__ == "Lion"
    assert [group[key] for key in ("lr", "betas", "weight_decay")] == [1e-4, (0.9, 0.98), 0.1]
    assert isinstance(build("timm/lookahead_adamw"), timm_optim.Lookahead)
    with pytest.raises(UsageError, match="unknown optimizer 'timm/lionn': did you mean timm/lion"):
        build("timm/lionn")
    with pytest.raises(UsageError, match="timm/adahessian needs second derivatives"):
        build("timm/adahessian")
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(
        MissingPackageError, match="SOLVER.OPTIMIZER timm/lion needs timm: pip install timm"
    ):
        build("timm/lion")


def test_every_optimizer_of_timm_takes_a_step_or_says_why_not():
    timm_optim = pytest.importorskip("timm.optim")
    stepped = 0
    for name in timm_optim.list_optimizers():
        model = nn.Linear(2, 2)
        before = model.weight.detach().clone()
        try:
            optimizer = build(f"timm/{name}", model, LR=0.1)
        except UserError as error:
            assert "needs" in str(error), name
            continue
        for _ in range(3):  # the first steps of some only gather statistics
            optimizer.zero_grad()
            model(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()
        assert not torch.equal(model.weight, before), name
        stepped += 1
    assert stepped > 50
