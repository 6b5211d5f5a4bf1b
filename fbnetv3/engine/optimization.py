"""Optimisers by name, and learning-rate schedules composed from fvcore's."""

from __future__ import annotations

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
    model: nn.Module, lr: float, *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0
) -> optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return optim.SGD(
        model.parameters(), lr, momentum=momentum, nesterov=nesterov and momentum > 0, weight_decay=weight_decay
    )


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
