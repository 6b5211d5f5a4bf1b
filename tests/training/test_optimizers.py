"""Optimizers."""

import sys

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.config import get_cfg
from fbnetv3.config.recipe import OPTIMIZERS
from fbnetv3.errors import MissingPackageError, UsageError
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
