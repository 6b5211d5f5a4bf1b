"""Build loss, mixup, optimizer and schedule of a classifier from its config."""

from __future__ import annotations

import math
from functools import partial

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torchvision.transforms import v2

from fbnetv3.config.recipe import OPTIMIZERS, TIMM_PREFIX, check_optimizer
from fbnetv3.errors import FieldError, UsageError
from fbnetv3.training.fine_tuning.network_layers import find_head, parameter_depths
from fbnetv3.training.losses import LOSSES, Loss
from fbnetv3.training.optimizers import build_timm_optimizer, parameter_groups
from fbnetv3.training.schedules import SCHEDULES, build_schedule
from fbnetv3.training.trainer import Mixup
from fbnetv3.utils.imports import accepted_settings


def loss_from_config(cfg: CfgNode, class_weights: Tensor | None = None) -> Loss:
    """Return the loss that SOLVER.LOSS names, with those of the config's settings that it accepts."""
    name = cfg.SOLVER.LOSS
    LOSSES.check(name, "SOLVER.LOSS", FieldError)
    loss = LOSSES.get(name)
    # Teacher logits and smoothed labels are blended in the targets, which is exact only for plain cross-entropy
    if cfg.DISTILL.CACHE and name != "cross_entropy":
        raise UsageError(f"SOLVER.LOSS {name}: DISTILL.CACHE works only with cross_entropy")
    if cfg.DISTILL.CACHE and class_weights is not None:
        raise UsageError("class weights do not work with cached logits: remove them, or DISTILL.CACHE")
    if cfg.DISTILL.CACHE:
        return loss
    # A loss may do without smoothing, but class weights that have no effect are a mistake
    settings = {"label_smoothing": cfg.SOLVER.LABEL_SMOOTHING, "focal_gamma": cfg.SOLVER.FOCAL_GAMMA}
    settings |= {} if class_weights is None else {"class_weights": class_weights}
    accepted = accepted_settings(loss, settings)
    if class_weights is not None and "class_weights" not in accepted:
        raise UsageError(f"SOLVER.LOSS {name} has no class weights: give it a parameter `class_weights`")
    return partial(loss, **accepted)


def build_mixup(cfg: CfgNode, num_classes: int) -> Mixup | None:
    """Build torchvision's mixup and CutMix, one of which is drawn for each batch; None if both are turned off."""
    choices = [
        mix(alpha=alpha, num_classes=num_classes)
        for mix, alpha in ((v2.MixUp, cfg.INPUT.MIXUP), (v2.CutMix, cfg.INPUT.CUTMIX))
        if alpha
    ]
    return v2.RandomChoice(choices) if len(choices) > 1 else next(iter(choices), None)


def base_lr(cfg: CfgNode) -> float:
    """Return the learning rate after warmup, scaled to the batch size if SOLVER.LR_BATCH_SIZE is set."""
    return cfg.SOLVER.LR * batch_size_factor(cfg)


def batch_size_factor(cfg: CfgNode) -> float:
    """Return the factor by which the learning rate depends on the batch size."""
    solver = cfg.SOLVER
    if not solver.LR_BATCH_SIZE:
        return 1.0
    ratio = solver.BATCH_SIZE / solver.LR_BATCH_SIZE
    return math.sqrt(ratio) if solver.LR_SCALING == "sqrt" else ratio


def optimizer_from_config(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the config's optimizer, with those settings that its builder accepts."""
    solver = cfg.SOLVER
    check_optimizer(solver.OPTIMIZER, "SOLVER.OPTIMIZER", FieldError)
    is_timms = solver.OPTIMIZER.startswith(TIMM_PREFIX)
    build = (
        partial(build_timm_optimizer, solver.OPTIMIZER.removeprefix(TIMM_PREFIX))
        if is_timms
        else OPTIMIZERS.get(solver.OPTIMIZER)
    )
    settings = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    settings |= {"alpha": solver.RMSPROP_ALPHA, "eps": solver.RMSPROP_EPS}
    settings |= {"betas": solver.ADAM_BETAS, "adam_eps": solver.ADAM_EPS}
    settings |= {"fused": all(parameter.is_cuda for parameter in model.parameters())}
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.DECAY_NORM_BIAS, _lr_scales(cfg, model))
    return build(groups, base_lr(cfg), **accepted_settings(build, settings))


def _lr_scales(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter: by part, and by depth as in timm."""
    solver = cfg.SOLVER
    head = {id(parameter) for parameter in find_head(model).parameters()}
    depths = parameter_depths(model)
    max_depth = max(depths.values())
    return {
        name: (solver.HEAD_LR_FACTOR if id(parameter) in head else solver.TRUNK_LR_FACTOR)
        * solver.LAYER_DECAY ** (max_depth - depths[name])
        for name, parameter in model.named_parameters()
    }


def schedule_from_config(cfg: CfgNode) -> ParamScheduler:
    """Build the config's learning-rate schedule."""
    solver = cfg.SOLVER
    SCHEDULES.check(solver.SCHEDULE, "SOLVER.SCHEDULE", FieldError)
    return build_schedule(
        solver.SCHEDULE,
        solver.EPOCHS,
        decay=solver.DECAY,
        warmup_epochs=solver.WARMUP_EPOCHS,
        warmup_factor=solver.WARMUP_FACTOR,
    )
