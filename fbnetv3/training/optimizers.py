"""Builders of optimizers. Their registry, `fbnetv3.config.recipe.OPTIMIZERS`, is readable without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn, optim

from fbnetv3.config.recipe import TIMM_PREFIX
from fbnetv3.errors import MissingPackageError, UnknownNameError, UsageError, suggest
from fbnetv3.utils.text import describe_error

ParameterGroups = list[dict[str, Any]]


def build_sgd(
    groups: ParameterGroups, lr: float, *, momentum: float, nesterov: bool, fused: bool = False
) -> optim.Optimizer:
    """Build stochastic gradient descent with momentum; `fused` updates all weights in one kernel."""
    # None, not False, lets torch choose between its other two implementations
    return optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused or None)


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


def build_adamw(
    groups: ParameterGroups, lr: float, *, betas: Sequence[float], adam_eps: float, fused: bool = False
) -> optim.Optimizer:
    """Build torch's AdamW, whose weight decay is not part of the gradient; `fused` as in `build_sgd`."""
    first, second = betas
    return optim.AdamW(groups, lr, betas=(first, second), eps=adam_eps, fused=fused or None)


def build_timm_optimizer(
    name: str, groups: ParameterGroups, lr: float, *, momentum: float, betas: Sequence[float]
) -> optim.Optimizer:
    """Build an optimizer of timm by its name there, such as "lion", with timm's defaults for all other settings.

    Raises:
        MissingPackageError: timm, or the package that the optimizer needs, is not installed.
        UnknownNameError: timm has no such optimizer.
        UsageError: the optimizer needs second derivatives or other settings.
    """
    key = f"SOLVER.OPTIMIZER {TIMM_PREFIX}{name}"
    try:
        from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
    except ImportError:
        raise MissingPackageError(f"{key} needs timm: pip install timm") from None
    base_name = name.removeprefix("lookahead_")
    names = list_optimizers()
    if base_name not in names:
        full_name = TIMM_PREFIX + name
        choices = [f"{TIMM_PREFIX}{optimizer}" for optimizer in names]
        raise UnknownNameError(f"unknown optimizer '{full_name}': {suggest(full_name, choices)}")
    info = get_optimizer_info(base_name)
    if info.second_order:
        raise UsageError(f"{key} needs second derivatives, which the training loop does not compute")
    settings: dict[str, Any] = {"betas": tuple(betas)} if info.has_betas and info.num_betas == 2 else {}
    try:
        return create_optimizer_v2(groups, name, lr, momentum=momentum, **settings)
    except (ImportError, AssertionError) as error:
        raise MissingPackageError(
            f"{key} needs a package that is missing ({describe_error(error)})"
        ) from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{key} does not accept these settings ({describe_error(error)})") from None


def is_fused(optimizer: optim.Optimizer) -> bool:
    """Return whether an optimizer updates weights in fused kernels, which skip a step if its `found_inf` is 1."""
    return all(group.get("fused") for group in optimizer.param_groups)


def keep_implementation(optimizer: optim.Optimizer) -> None:
    """Let an optimizer load states without the implementation that they record: it depends on the device."""
    optimizer.register_load_state_dict_pre_hook(_with_own_implementation)


def _with_own_implementation(optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = optimizer.param_groups
    if len(groups) != len(state["param_groups"]):  # torch reports it
        return state
    own = [{key: group[key] for key in ("foreach", "fused") if key in group} for group in groups]
    merged = [{**saved, **choices} for saved, choices in zip(state["param_groups"], own, strict=True)]
    return {**state, "param_groups": merged}


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_norm_bias: bool,
    lr_scales: Mapping[str, float] | None = None,
) -> ParameterGroups:
    """Group a model's trainable parameters by weight decay and learning rate.

    Args:
        model: network; parameters without gradient are left out.
        weight_decay: weight decay.
        decay_norm_bias: whether biases, and the scales and shifts of norm layers, have weight decay.
        lr_scales: factor of the learning rate by parameter name, "lr_scale" in the groups, as in timm; default: 1.

    Raises:
        UsageError: no parameter is trainable.
    """
    trainable = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    if not trainable:
        raise UsageError("MODEL.FREEZE leaves nothing to train")
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in trainable:
        scale = lr_scales[name] if lr_scales else 1.0
        # Biases, and the scales and shifts of norm layers, are vectors
        decays = decay_norm_bias or parameter.ndim > 1
        group = {"params": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        groups.setdefault((scale, decays), group)["params"].append(parameter)
    return list(groups.values())
