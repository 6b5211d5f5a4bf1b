"""Set up a detector's training or evaluation: processes, model, optimizer, precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn, optim

from fbnetv3.errors import UsageError
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
    """Build `SOLVER.OPTIMIZER`, with detectron2's keys for weight decay, biases and gradient clipping."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    # detectron2 builds SGD only; AdamW gets the same parameter groups
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = optim.AdamW(parameters, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, adamw)


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
