"""Set up a detector's training or evaluation: processes, model, optimizer, precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn, optim

from fbnetv3.errors import UsageError
from fbnetv3.training.optimizers import keep_implementation
from fbnetv3.training.processes.distributed import ProcessGroup, process_group

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def detector_process_group(cfg: CfgNode) -> Iterator[ProcessGroup]:
    """Join the process group; make detectron2 forget the group of an earlier run in this process."""
    with process_group(cfg.MODEL.DEVICE) as group:
        # detectron2 caches the group for exchanges on the CPU
        if hasattr(comm, "_get_global_gloo_group"):
            comm._get_global_gloo_group.cache_clear()
        yield group


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the model in the config's memory format; only weights of MODEL.FBNETV3.WEIGHTS are loaded."""
    model = build_model(cfg)
    if cfg.MODEL.FBNETV3.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if cfg.MODEL.KEYPOINT_ON:
            # The loss of detectron2 0.6 views the outputs as (N, K, H, W)
            model.roi_heads.keypoint_head.to(memory_format=torch.contiguous_format)
    return model


def build_detector_optimizer(cfg: CfgNode, model: nn.Module) -> optim.Optimizer:
    """Build `SOLVER.OPTIMIZER`, with detectron2's keys for weight decay, biases and gradient clipping.

    On a GPU it is torch's fused implementation, except with gradient clipping: detectron2 clips before the step, while
    a fused optimizer divides by the scale of float16 within it.
    """
    optimizer: optim.Optimizer
    fused = prefers_fused(cfg)
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        adamw = optim.AdamW(
            _parameter_groups(cfg, model),
            cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=fused or None,
        )
        optimizer = maybe_add_gradient_clipping(cfg, adamw)
    elif fused:  # detectron2 asks for another implementation
        optimizer = optim.SGD(
            _parameter_groups(cfg, model),
            cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=True,
        )
    else:
        optimizer = build_optimizer(cfg, model)
    keep_implementation(optimizer)
    return optimizer


def _parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups that detectron2 builds for SGD."""
    return get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )


def prefers_fused(cfg: CfgNode) -> bool:
    """Return whether the optimizer of a config is torch's fused implementation."""
    return cfg.MODEL.DEVICE.startswith("cuda") and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED


def use_own_gpu(cfg: CfgNode, group: ProcessGroup) -> CfgNode:
    """Return a config without the number of a GPU if there are several processes, each of which has its own.

    That is the current one, which "cuda" stands for.
    """
    if group.size == 1 or not cfg.MODEL.DEVICE.startswith("cuda"):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    return cfg


def scale_to_world_size(cfg: CfgNode, group: ProcessGroup) -> CfgNode:
    """Scale the solver to the number of processes, if `SOLVER.REFERENCE_WORLD_SIZE` is set."""
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}"
        )
    if reference not in (0, group.size):
        logger.info("scaling SOLVER from %d processes to %d, as detectron2 does", reference, group.size)
    return DefaultTrainer.auto_scale_workers(cfg, group.size)


def training_precision(cfg: CfgNode) -> torch.dtype:
    """Return the data type of the forward pass: float32, or `SOLVER.AMP.DTYPE` in mixed precision."""
    return getattr(torch, cfg.SOLVER.AMP.DTYPE) if cfg.SOLVER.AMP.ENABLED else torch.float32


@contextlib.contextmanager
def cudnn_benchmark(enabled: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms within the block, as `CUDNN_BENCHMARK` asks for."""
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous
