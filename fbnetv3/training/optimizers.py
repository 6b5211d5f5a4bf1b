"""Builders of optimizers. Their registry, `fbnetv3.config.recipe.OPTIMIZERS`, is readable without importing torch."""

from __future__ import annotations

from typing import Any

from torch import nn, optim

from fbnetv3.errors import MissingPackageError

ParameterGroups = list[dict[str, Any]]


def build_sgd(groups: ParameterGroups, lr: float, *, momentum: float, nesterov: bool) -> optim.Optimizer:
    """Build stochastic gradient descent with momentum."""
    return optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def build_rmsprop(
    groups: ParameterGroups, lr: float, *, momentum: float, alpha: float, eps: float
) -> optim.Optimizer:
    """Build torch's RMSProp, which adds `eps` to the root of the mean squared gradient, smoothed by `alpha`."""
    return optim.RMSprop(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


def build_rmsprop_tf(
    groups: ParameterGroups, lr: float, *, momentum: float, alpha: float, eps: float
) -> optim.Optimizer:
    """Build timm's RMSpropTF, which adds `eps` under the root, as TensorFlow does.

    EfficientNet's and MobileNetV3's published weights were trained this way, with eps = 0.001.
    """
    try:
        from timm.optim import RMSpropTF
    except ImportError:
        raise MissingPackageError("SOLVER.OPTIMIZER rmsprop_tf needs timm: pip install timm") from None
    return RMSpropTF(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_bias: bool) -> ParameterGroups:
    """Group a model's parameters by weight decay. Without `decay_norm_bias`, a second group has none."""
    if decay_norm_bias:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    # Biases, and the scales and shifts of norm layers, are vectors
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms_and_biases = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": norms_and_biases, "weight_decay": 0.0},
    ]
