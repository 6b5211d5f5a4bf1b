"""Train or evaluate the classifier that a config describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.training.builders import Inputs, build_inputs, class_weights_from_config
from fbnetv3.training.classifier_run import ClassifierRun, RunResult
from fbnetv3.training.devices.device_memory import explain_out_of_memory, reset_peak_memory
from fbnetv3.training.devices.gpu_algorithms import gpu_algorithms
from fbnetv3.training.devices.run_device import select_device
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup, process_group
from fbnetv3.training.recorded_networks import start_from_weights
from fbnetv3.training.run_state.checkpoints import Checkpoints, State
from fbnetv3.training.run_state.network_record import record_from_metadata
from fbnetv3.training.run_state.run_folder import RunFolder, run_lock
from fbnetv3.training.solver import loss_from_config, optimizer_from_config, schedule_from_config
from fbnetv3.training.tracking.trackers import check_trackers
from fbnetv3.training.trainer import Trainer
from fbnetv3.training.training_hooks import Callback
from fbnetv3.utils.logging_setup import quiet_other_ranks, quiet_terminal
from fbnetv3.utils.random_state import forked_random_state, seed_device

SAVE_MEMORY = (
    "lower SOLVER.BATCH_SIZE, raise SOLVER.ACCUMULATE, or set SOLVER.FIT_MEMORY True, which finds the largest batch "
    "that fits"
)
"""Advice after a training step that ran out of memory."""


def train(
    cfg: CfgNode, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> list[dict[str, float]]:
    """Train a classifier without terminal output, as a search does for each trial, and return its learning curve.

    Each evaluation has "epoch", "top1", "loss" and so on. The random state, loggers and signal handlers of the process
    are restored afterwards. The arguments and errors are those of `train_classifier`.
    """
    with quiet_terminal():
        return train_classifier(cfg, resume=resume, callbacks=callbacks, progress=False).curve


def check_training_config(cfg: CfgNode) -> Inputs:
    """Check that the architecture, data and registered names in a config exist, and return the run's inputs.

    Nothing is written.
    """
    cfg, arch, _ = start_from_weights(cfg)
    inputs = build_inputs(cfg, arch, torch.device("cpu"))
    loss_from_config(inputs.cfg)
    class_weights_from_config(inputs.cfg, inputs.train)
    optimizer_from_config(inputs.cfg, nn.Linear(1, 1))
    schedule_from_config(inputs.cfg)
    check_trackers(inputs.cfg.LOG.TRACKERS)
    return inputs


def train_classifier(
    cfg: CfgNode, *, resume: bool = False, callbacks: Sequence[Callback] = (), progress: bool = True
) -> RunResult:
    """Train and evaluate the classifier that a config describes.

    Nothing is written until the config, data and weights have been validated.

    Args:
        cfg: config from `load_config`.
        resume: whether to resume from the newest checkpoint in `OUTPUT_DIR`, if there is one.
        callbacks: functions called after each evaluation with its results; one that returns False ends the run.
        progress: whether to show progress bars on a terminal.

    Raises:
        UsageError: the config is invalid, `OUTPUT_DIR` already contains a run, or that run cannot be resumed.
        DataError: the dataset cannot be read, or has too many corrupt images.
        WeightsError: initial weights or a checkpoint cannot be loaded.
        DivergedError: the loss is not finite.
        DeviceMemoryError: the device has too little memory.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM, after a checkpoint was saved.
    """
    run_folder = RunFolder(cfg.OUTPUT_DIR)
    with process_group(cfg.DEVICE) as group, quiet_other_ranks(group.rank):
        device = select_device(cfg.DEVICE, group)
        reset_peak_memory(device)
        with (
            explain_out_of_memory(device, SAVE_MEMORY),
            forked_random_state(device),
            gpu_algorithms(cfg.SOLVER.DETERMINISTIC),
            run_lock(run_folder, group, resume) as acquire_lock,
        ):
            seed_device(cfg.SEED, device)
            # Build and validate everything, resume, and only then write
            newest = _load_newest(run_folder, group)
            record = record_from_metadata(newest[1], str(newest[0])) if newest else None
            run = ClassifierRun(cfg, group, run_folder, callbacks, progress and group.is_rank_0, record)
            if newest:
                run.resume_from(*newest)
            acquire_lock()
            return run.run()


def _load_newest(run_folder: RunFolder, group: ProcessGroup) -> tuple[Path, State] | None:
    """Return the path and contents of the newest complete checkpoint; None if there is none."""
    # Rank 0 reads the file; the others may not see its disk
    return group.broadcast(Checkpoints(run_folder.checkpoints).load_newest() if group.is_rank_0 else None)


def build_trainer(cfg: CfgNode) -> tuple[Trainer, CfgNode]:
    """Return the trainer of a run in this process, without hooks, and the config with the values that fit the dataset.

    Nothing is written.
    """
    run = ClassifierRun(cfg, SINGLE_PROCESS, RunFolder(cfg.OUTPUT_DIR), (), False)
    run.trainer.hooks = ()
    return run.trainer, run.cfg
