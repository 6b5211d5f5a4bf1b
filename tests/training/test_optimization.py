"""Optimisers and learning-rate schedules."""

import pytest
import torch
from torch import nn

from fbnetv3.errors import UsageError
from fbnetv3.training.optimizers import build_optimizer, build_schedule


def test_cosine_with_warm_up():
    schedule = build_schedule("cosine", 10, warmup_epochs=2, warmup_factor=0.1)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(0.1) == pytest.approx(0.55)  # half of the warm-up
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(0.5)
    assert schedule(1 - 1e-9) == pytest.approx(0, abs=1e-6)


def test_exponential_decay_is_per_epoch_after_the_warm_up():
    schedule = build_schedule("exponential", 400, decay=0.9875, warmup_epochs=5)
    assert schedule(5 / 400) == pytest.approx(1)
    assert schedule(6 / 400) == pytest.approx(0.9875)
    assert schedule(105 / 400) == pytest.approx(0.9875**100)


def test_schedules_without_warm_up_and_of_nothing_else():
    assert build_schedule("exponential", 10, decay=0.5)(0.3) == pytest.approx(0.125)
    assert build_schedule("cosine", 2, warmup_epochs=2)(0.5) == pytest.approx(0.55)
    with pytest.raises(UsageError, match="neither cosine nor exponential"):
        build_schedule("step", 10)


def test_sgd():
    optimizer = build_optimizer("sgd", nn.Linear(2, 2), 0.1, momentum=0.8, weight_decay=0.01)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.8, True, 0.01)


def test_rmsprop():
    optimizer = build_optimizer("rmsprop", nn.Linear(2, 2), 0.02, momentum=0.8, weight_decay=0.01, alpha=0.7, eps=0.1)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [group[key] for key in ("lr", "momentum", "alpha", "eps", "weight_decay")] == [0.02, 0.8, 0.7, 0.1, 0.01]


def test_norms_and_biases_without_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, others = build_optimizer("sgd", model, 0.1, weight_decay=0.01, decay_norm_bias=False).param_groups
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 0.01
    assert [p.ndim for p in others["params"]] == [1, 1, 1] and others["weight_decay"] == 0
