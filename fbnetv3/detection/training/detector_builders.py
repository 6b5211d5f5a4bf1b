"""Build the parts of a detector's run from its detectron2 config."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn, optim

from fbnetv3.detection.data.detection_datasets import check_datasets, load_dataset_dicts
from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import ProcessGroup, process_group
from fbnetv3.training.run_state.checkpoints import State

logger = logging.getLogger(__name__)


def build_detector_optimizer(cfg: CfgNode, model: nn.Module) -> optim.Optimizer:
    """Build `SOLVER.OPTIMIZER`, with detectron2's keys for weight decay, biases and gradient clipping."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_detectron2_optimizer(cfg, model)
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


@contextlib.contextmanager
def detectron2_process_group(cfg: CfgNode) -> Iterator[ProcessGroup]:
    """Join the process group; make detectron2 forget the group of an earlier run in this process."""
    with process_group(cfg.MODEL.DEVICE) as group:
        # detectron2 caches the group for exchanges on the CPU
        if hasattr(comm, "_get_global_gloo_group"):
            comm._get_global_gloo_group.cache_clear()
        yield group


def check_and_load_datasets(cfg: CfgNode, group: ProcessGroup, *, training: bool = False) -> None:
    """Check the annotations on rank 0, and load the test datasets, which registers their class names."""
    if group.is_rank_0:
        if training:
            check_datasets(cfg, cfg.DATASETS.TRAIN, need_boxes=True)
        check_datasets(cfg, cfg.DATASETS.TEST, need_boxes=False)
    for name in cfg.DATASETS.TEST:
        load_dataset_dicts(name)


def build_detection_model(cfg: CfgNode) -> nn.Module:
    """Build the model in the config's memory format, with weights only if MODEL.FBNETV3.WEIGHTS names a file."""
    model = build_model(cfg)
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.FBNETV3.CHANNELS_LAST else model


def scale_to_world_size(cfg: CfgNode, group: ProcessGroup) -> CfgNode:
    """Scale the solver to the number of processes, if `SOLVER.REFERENCE_WORLD_SIZE` is set."""
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of REFERENCE_WORLD_SIZE {reference}"
        )
    if reference not in (0, group.size):
        logger.info("scaling SOLVER from %d processes to %d, as detectron2 does", reference, group.size)
    return DefaultTrainer.auto_scale_workers(cfg, group.size)


def choose_seed(cfg: CfgNode, checkpoint: tuple[Path, State] | None, group: ProcessGroup) -> int:
    """Return `SEED`; if it is negative, the seed of the run to resume, or a random one."""
    if cfg.SEED >= 0:
        return cfg.SEED
    # A negative SEED means a random one, but a resumed run must keep its own
    random_seed = group.broadcast(int.from_bytes(os.urandom(4), "little"))
    if checkpoint is None:
        return random_seed
    _, state = checkpoint
    return state.get("metadata", {}).get("seed", random_seed)
