"""Optimizers by name. `fbnetv3.config.recipe.OPTIMIZERS` is the registry, readable without importing torch."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from fbnetv3.config.recipe import OPTIMIZERS
from fbnetv3.errors import MissingPackageError
from fbnetv3.utils.imports import accepted_settings

ParameterGroups = list[dict[str, Any]]


def build_sgd(groups: ParameterGroups, lr: float, *, momentum: float, nesterov: bool) -> optim.Optimizer:
    """Build stochastic gradient descent with momentum."""
    return optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def build_rmsprop(groups: ParameterGroups, lr: float, *, momentum: float, alpha: float, eps: float) -> optim.Optimizer:
    """Build torch's RMSProp, which adds `eps` to the root of the mean squared gradient."""
    return optim.RMSprop(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


def build_rmsprop_tf(
    groups: ParameterGroups, lr: float, *, momentum: float, alpha: float, eps: float
) -> optim.Optimizer:
    """Build timm's RMSpropTF, which adds `eps` under the root, as TensorFlow does.

    EfficientNet's and MobileNetV3's published weights were trained this way, with eps = 0.001.

    Raises:
        MissingPackageError: timm is not installed.
    """
    try:
        from timm.optim import RMSpropTF
    except ImportError:
        raise MissingPackageError("SOLVER.OPTIMIZER rmsprop_tf needs timm: pip install timm") from None
    return RMSpropTF(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


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
    """Build a registered optimizer.

    Args:
        name: name of a builder in `OPTIMIZERS`, which is called with parameter groups, the learning rate, and whichever
            of the settings `momentum`, `nesterov`, `alpha` and `eps` its signature accepts.
        model: model whose parameters are optimized.
        lr: initial learning rate.
        weight_decay: L2 penalty.
        decay_norm_bias: whether the penalty also applies to biases and to the scales and shifts of norm layers.
        momentum: momentum, for the built-in optimizers.
        nesterov: Nesterov momentum, for SGD.
        alpha: RMSProp's smoothing of the squared gradient.
        eps: RMSProp's constant in the denominator.
    """
    build = OPTIMIZERS.get(name)
    settings = {"momentum": momentum, "nesterov": nesterov, "alpha": alpha, "eps": eps}
    return build(parameter_groups(model, weight_decay, decay_norm_bias), lr, **accepted_settings(build, settings))


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_bias: bool) -> ParameterGroups:
    """Group a model's parameters by weight decay: one group, or a second one without decay for vectors."""
    if decay_norm_bias:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    # Vectors are biases, and the scales and shifts of norm layers
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
