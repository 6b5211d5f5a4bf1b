"""Optimisers by name, and learning-rate schedules composed from fvcore's."""

from __future__ import annotations

from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    ExponentialParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn, optim

from fbnetv3.errors import UsageError
from fbnetv3.registry import Registry

OPTIMIZERS = Registry("optimizer")


@OPTIMIZERS.register(name="sgd")
def sgd(
    groups: list[dict[str, Any]], lr: float, *, momentum: float, nesterov: bool, **others: float
) -> optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov and momentum > 0)


@OPTIMIZERS.register(name="rmsprop")
def rmsprop(
    groups: list[dict[str, Any]], lr: float, *, momentum: float, alpha: float, eps: float, **others: float
) -> optim.Optimizer:
    """RMSProp with momentum."""
    return optim.RMSprop(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    decay_norm_bias: bool = True,
    momentum: float = 0.9,
    nesterov: bool = True,
    alpha: float = 0.9,
    eps: float = 0.25,
) -> optim.Optimizer:
    """A registered optimiser for a model.

    Args:
        name: "sgd", "rmsprop", or what a user has registered in `OPTIMIZERS`.
        model: whose parameters to optimise.
        lr: initial learning rate.
        weight_decay: L2 penalty.
        decay_norm_bias: whether it holds for norms' scales and shifts and for biases too.
        momentum: of either.
        nesterov: SGD's.
        alpha, eps: RMSProp's smoothing of the squared gradient, and what is added to its root.

    Raises:
        UnknownNameError: no optimiser of that name.
    """
    groups = parameter_groups(model, weight_decay, decay_norm_bias)
    return OPTIMIZERS.get(name)(groups, lr, momentum=momentum, nesterov=nesterov, alpha=alpha, eps=eps)


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_bias: bool) -> list[dict[str, Any]]:
    """A model's parameters with their weight decay: one group, or a second without decay for vectors."""
    if decay_norm_bias:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_schedule(
    name: str, epochs: int, *, decay: float = 1.0, warmup_epochs: float = 0.0, warmup_factor: float = 0.1
) -> ParamScheduler:
    """Factor on the learning rate as a function of progress in [0, 1).

    After a linear warm-up from `warmup_factor` to 1 come, over the other epochs, "cosine" down to 0 or
    "exponential", times `decay` with each epoch (Sec. 4.1: 0.963 in the search, 0.9875 in the end).

    Raises:
        UsageError: an unknown name.
    """
    main_epochs = epochs - warmup_epochs
    if name == "cosine":
        main: ParamScheduler = CosineParamScheduler(1.0, 0.0)
    elif name == "exponential":
        main = ExponentialParamScheduler(1.0, decay**main_epochs)
    else:
        raise UsageError(f"schedule '{name}' is neither cosine nor exponential")
    if not warmup_epochs:
        return main
    warmup = LinearParamScheduler(warmup_factor, 1.0)
    if not main_epochs:
        return warmup
    share = warmup_epochs / epochs
    return CompositeParamScheduler([warmup, main], [share, 1 - share], ["rescaled", "rescaled"])
