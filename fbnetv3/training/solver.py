"""Build loss, mixup, optimizer and schedule of a classifier from its config."""

from __future__ import annotations

from functools import partial

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torchvision.transforms import v2

from fbnetv3.config.recipe import OPTIMIZERS
from fbnetv3.errors import FieldError, UsageError
from fbnetv3.training.losses import LOSSES, Loss
from fbnetv3.training.optimizers import parameter_groups
from fbnetv3.training.schedules import SCHEDULES, build_schedule
from fbnetv3.training.trainer import Mixup
from fbnetv3.utils.imports import accepted_settings


def loss_from_config(cfg: CfgNode) -> Loss:
    """Return the loss that SOLVER.LOSS names, with the config's label smoothing if it accepts one."""
    LOSSES.check(cfg.SOLVER.LOSS, "SOLVER.LOSS", FieldError)
    loss = LOSSES.get(cfg.SOLVER.LOSS)
    if not cfg.DISTILL.CACHE:
        return partial(loss, **accepted_settings(loss, {"label_smoothing": cfg.SOLVER.LABEL_SMOOTHING}))
    # Teacher logits and smoothed labels are blended in the targets, which is exact only for cross-entropy
    if cfg.SOLVER.LOSS != "cross_entropy":
        raise UsageError(f"SOLVER.LOSS {cfg.SOLVER.LOSS}: DISTILL.CACHE works only with cross_entropy")
    return loss


def build_mixup(cfg: CfgNode, num_classes: int) -> Mixup | None:
    """Build torchvision's mixup; None if INPUT.MIXUP is 0."""
    return v2.MixUp(alpha=cfg.INPUT.MIXUP, num_classes=num_classes) if cfg.INPUT.MIXUP else None


def base_lr(cfg: CfgNode) -> float:
    """Return the learning rate after warmup, scaled to the batch size if SOLVER.LR_BATCH_SIZE is set."""
    solver = cfg.SOLVER
    return solver.LR * solver.BATCH_SIZE / solver.LR_BATCH_SIZE if solver.LR_BATCH_SIZE else solver.LR


def optimizer_from_config(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the config's optimizer, with those settings that its builder accepts."""
    solver = cfg.SOLVER
    OPTIMIZERS.check(solver.OPTIMIZER, "SOLVER.OPTIMIZER", FieldError)
    build = OPTIMIZERS.get(solver.OPTIMIZER)
    settings = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    settings |= {"alpha": solver.RMSPROP_ALPHA, "eps": solver.RMSPROP_EPS}
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.DECAY_NORM_BIAS)
    return build(groups, base_lr(cfg), **accepted_settings(build, settings))


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
