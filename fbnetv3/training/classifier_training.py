"""From a config to a run: datasets, network, loop and hooks put together, and the files that they leave."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.config.loading import flat_keys
from fbnetv3.data import DamageCounter, build_dataset
from fbnetv3.errors import OutputError, UsageError, UserError, WeightsError
from fbnetv3.modeling.sync_batchnorm import sync_batchnorm
from fbnetv3.training.builders import (
    AnyArch,
    Inputs,
    base_lr,
    build_arch,
    build_device,
    build_inputs,
    build_mixup,
    build_model,
    build_objective,
    build_val_loader,
    describe_arch,
    optimizer_of,
    preprocessing_of,
    schedule_of,
    teacher_key,
)
from fbnetv3.training.classifier_evaluation import evaluate
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import World, joined
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.run_state.environment import describe_environment
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.training.run_state.run_folder import RunFiles
from fbnetv3.training.run_state.run_lock import RunLock
from fbnetv3.training.trainer import Trainer
from fbnetv3.training.training_hooks import (
    Autopsy,
    Callback,
    Checkpointing,
    Curve,
    Evaluation,
    Metrics,
    ProgressBar,
)
from fbnetv3.utils.files import atomic_write, remove_partial_files
from fbnetv3.utils.logging_setup import log_on_rank_0, log_to_file, quiet_terminal
from fbnetv3.utils.random_state import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        metrics: its last evaluation: "top1", "top5", "loss", "images", and of the average "ema_top1" and so on.
        curve: all its evaluations, each with its "epoch".
        files: where it left what.
        num_classes: outputs of the network.
    """

    metrics: dict[str, float]
    curve: list[dict[str, float]]
    files: RunFiles
    num_classes: int


def train(cfg: CfgNode, callbacks: Sequence[Callback] = (), *, resume: bool = False) -> list[dict[str, float]]:
    """Train a network and return its learning curve: what a search calls a thousand times.

    It shows nothing, and leaves nothing behind in the process: two trainings do not touch each other.

    Args:
        cfg: from `load_config`.
        callbacks: called after each evaluation with its results; one that answers False ends the run there.
        resume: go on from the newest checkpoint in `OUTPUT_DIR`, if there is one.

    Returns:
        The evaluations, each with "epoch", "top1", "loss" and so on.

    Raises:
        UserError: as for `run_training`.
    """
    with quiet_terminal():
        return run_training(cfg, resume=resume, callbacks=callbacks, progress=False).curve


def check_training(cfg: CfgNode) -> None:
    """Find network and data of a training run without training. Writes nothing.

    Raises:
        UserError: as `run_training` would, for what the config describes.
    """
    build_inputs(cfg, build_arch(cfg, cfg.MODEL.ARCH), torch.device("cpu"))


def run_training(
    cfg: CfgNode, *, resume: bool = False, callbacks: Sequence[Callback] = (), progress: bool = True
) -> RunResult:
    """Train and evaluate the classifier that a config describes. Nothing is written before all of it makes sense.

    Args:
        cfg: from `load_config`.
        resume: go on from the newest checkpoint in `OUTPUT_DIR`, if there is one.
        callbacks: called after each evaluation with its results; one that answers False ends the run there.
        progress: show bars, on a terminal.

    Raises:
        UserError: a wrong config, missing data, an output folder that is in use or cannot be written.
    """
    with joined(cfg.DEVICE) as world, torch.random.fork_rng(), log_on_rank_0(world.rank):
        torch.manual_seed(cfg.SEED)
        return _run_training(cfg, world, resume, callbacks, progress and world.is_main)


def _run_training(cfg: CfgNode, world: World, resume: bool, callbacks: Sequence[Callback], progress: bool) -> RunResult:
    device = build_device(cfg.DEVICE, world)
    files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
    with RunLock(files, world, resume) as lock:
        return _run_locked(cfg, world, device, files, lock, callbacks, progress)


def _run_locked(
    cfg: CfgNode,
    world: World,
    device: torch.device,
    files: RunFiles,
    lock: RunLock,
    callbacks: Sequence[Callback],
    progress: bool,
) -> RunResult:
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    inputs = build_inputs(cfg, arch, device, world)
    model = build_model(cfg, arch, inputs.train.classes, device, cfg.MODEL.WEIGHTS)
    num_classes = cast("int", model.num_classes)
    if cfg.MODEL.SYNC_BN and world.size > 1:
        model = sync_batchnorm(model, device)
    if world.rank:  # the same weights, other chances: dropout, stochastic depth, mixup
        torch.manual_seed(derive_seed(cfg.SEED, world.rank))
    damage = DamageCounter(cfg.DATA.MAX_CORRUPT)
    ema = ModelEMA(model, cfg.EMA.DECAY) if cfg.EMA.ENABLED else None
    about = {
        "arch": arch.name,
        "definition": describe_arch(arch),
        "num_classes": num_classes,
        "in_chans": cfg.MODEL.IN_CHANS,
        "steps_per_epoch": len(inputs.train_loader),
        "config": _decisive_keys(cfg),
    }
    checkpoints = Checkpoints(files.checkpoints, cfg.CHECKPOINT.KEEP)
    latest = world.broadcast(checkpoints.load_latest() if world.is_main else None)
    curve = Curve(callbacks, world.broadcast(_evaluations(files.metrics)) if latest else ())

    def evaluate_all() -> dict[str, float]:
        arguments = {"channels_last": cfg.MODEL.CHANNELS_LAST, "damage": damage, "progress": progress, "world": world}
        world.share_buffers(model, ema and ema.module)
        results = evaluate(model, inputs.val_loader, device, **arguments)
        if ema is not None:
            averaged = evaluate(ema.module, inputs.val_loader, device, **arguments)
            results |= {f"ema_{key}": value for key, value in averaged.items() if key != "images"}
        return results

    trainer = Trainer(
        model,
        build_objective(cfg, num_classes, inputs.preprocessing.resolution, device),
        optimizer_of(cfg, model),
        schedule_of(cfg),
        inputs.train_loader,
        lr=base_lr(cfg),
        epochs=cfg.SOLVER.EPOCHS,
        device=device,
        channels_last=cfg.MODEL.CHANNELS_LAST,
        mixup=build_mixup(cfg, num_classes),
        ema=ema,
        precision=getattr(torch, cfg.SOLVER.PRECISION),
        accumulate=cfg.SOLVER.ACCUMULATE,
        damage=damage,
        world=world,
        hooks=[
            Evaluation(evaluate_all, cfg.EVAL.PERIOD),
            *([Metrics(files.metrics, files.curve, files.tensorboard, cfg.LOG.PERIOD)] if world.is_main else []),
            ProgressBar(progress),
            curve,
            Checkpointing(checkpoints, cfg.CHECKPOINT.PERIOD, cfg.CHECKPOINT.STEPS, files.weights, files.best, about),
            Autopsy(files.diverged),
        ],
    )
    if latest:
        path, state = latest
        try:
            _check_same_run(state, about, cfg.SOLVER.EPOCHS, path)
            trainer.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise WeightsError(f"{path}: cannot be gone on from ({_first_line(error)}): remove it") from None
    lock.acquire()
    if world.is_main:
        prepare_output(files, cfg)
    with log_to_file(files.log) if world.is_main else contextlib.nullcontext():
        _announce(cfg, arch, model, inputs, device, world)
        if latest:
            done = trainer.progress
            logger.info("going on from %s, after %d epochs and %d steps in all", path, done.epoch, done.step)
            curve.results = [result for result in curve.results if result["epoch"] <= done.epoch]
        if trainer.progress.epoch < trainer.epochs and world.is_main:
            files.weights.unlink(missing_ok=True)  # of a shorter run that goes on now
        if cfg.MODEL.COMPILE:
            model.compile()
        metrics = trainer.run()
    results = {key.removeprefix("val_"): value for key, value in metrics.items()}
    return RunResult(results, curve.results, files, num_classes)


def run_evaluation(cfg: CfgNode) -> dict[str, float]:
    """Evaluate `MODEL.WEIGHTS`, or without it what `OUTPUT_DIR` holds, on the validation images. Writes nothing.

    Of weights that hold an average (EMA), it is the average that is evaluated.

    Raises:
        UserError: a wrong config, missing data or weights.
    """
    with joined(cfg.DEVICE) as world, log_on_rank_0(world.rank):
        return _run_evaluation(cfg, world)


def _run_evaluation(cfg: CfgNode, world: World) -> dict[str, float]:
    files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
    weights = cfg.MODEL.WEIGHTS or files.found_weights()
    if not weights:
        raise UsageError(
            f"no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run's folder ({files.folder} has none)"
        )
    device = build_device(cfg.DEVICE, world)
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    preprocessing = preprocessing_of(cfg, arch)
    val_set = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val")
    model = build_model(cfg, arch, val_set.classes, device, str(weights), need_head=True)
    logger.info("evaluating %s of %s on %d images", arch.name, weights, len(val_set))
    loader = build_val_loader(cfg, val_set, preprocessing, device, world)
    damage = DamageCounter(cfg.DATA.MAX_CORRUPT)
    arguments = {"channels_last": cfg.MODEL.CHANNELS_LAST, "damage": damage, "progress": world.is_main, "world": world}
    return evaluate(model, loader, device, **arguments)


def _announce(
    cfg: CfgNode, arch: AnyArch, model: nn.Module, inputs: Inputs, device: torch.device, world: World
) -> None:
    logger.info(
        "%s (%.2f M parameters, input %d px) on %s: %d training, %d validation images, %d epochs, %s",
        arch.name,
        sum(p.numel() for p in model.parameters()) / 1e6,
        inputs.preprocessing.resolution,
        cfg.DATA.NAME,
        len(inputs.train),
        len(inputs.val),
        cfg.SOLVER.EPOCHS,
        f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else device,
    )
    if world.size > 1:
        norm = "BatchNorm over all of them" if cfg.MODEL.SYNC_BN else "BatchNorm for each"
        logger.info("%d processes, %d images of a batch to each, %s", world.size, inputs.train_loader.batch_size, norm)
    if cfg.DISTILL.ARCH:
        where = f", its answers from {cfg.DISTILL.CACHE}" if cfg.DISTILL.CACHE else ""
        logger.info("distilled from %s of %s%s", cfg.DISTILL.ARCH, cfg.DISTILL.WEIGHTS, where)


def _decisive_keys(cfg: CfgNode) -> dict[str, Any]:
    """What decides about a run's weights, by key: not where it runs, how long, or what it shows and keeps."""
    left_out = {"OUTPUT_DIR", "DEVICE", "DATA.ROOT", "DATA.WORKERS", "DATA.MAX_CORRUPT", "SOLVER.EPOCHS", "RECIPE"}
    left_out |= {
        "MODEL.ARCH",  # compared by what it is
        "MODEL.ARCH_DIRS",
        "MODEL.WEIGHTS",
        "MODEL.CHANNELS_LAST",
        "MODEL.COMPILE",
        "DISTILL.WEIGHTS",
    }
    keys = flat_keys(cfg) | {"DISTILL.ARCH": teacher_key(cfg), "DISTILL.CACHE": bool(cfg.DISTILL.CACHE)}  # not where
    return {
        key: value
        for key, value in keys.items()
        if key not in left_out and key.split(".")[0] not in ("EVAL", "CHECKPOINT", "LOG")
    }


def _check_same_run(state: dict[str, Any], about: dict[str, Any], epochs: int, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint of another network, another recipe or a longer run."""
    saved = state["about"]
    flat = [({**parts, **parts["config"]}) for parts in (saved, about)]
    for what, value in flat[1].items():
        if what != "config" and flat[0].get(what) != value:
            values = "" if what == "definition" else f" {flat[0].get(what)}, not {value}"
            raise UsageError(
                f"{checkpoint}: is of a run with another {what}{values}: "
                "use the config.yaml of that run, or another OUTPUT_DIR"
            )
    if state["epoch"] > epochs:
        raise UsageError(f"{checkpoint}: is {state['epoch']} epochs old already; SOLVER.EPOCHS {epochs} is less")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _evaluations(metrics: Path) -> list[dict[str, float]]:
    """The evaluations in a metrics file, as a run's curve has them."""
    if not metrics.exists():
        return []
    entries = [entry for entry in read_metrics(metrics) if {"epoch", "val_top1"} <= entry.keys()]
    return [{key.removeprefix("val_"): value for key, value in entry.items() if key != "step"} for entry in entries]


def prepare_output(files: RunFiles, cfg: CfgNode) -> None:
    """Make a run's folder, with the whole config and what describes the environment.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        files.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (files.folder, files.checkpoints):
            remove_partial_files(folder)
        with atomic_write(files.config) as f:
            f.write(cfg.dump().encode())
        environments = []
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):  # none yet, or not ours
            found = json.loads(files.environment.read_text())
            environments = found if isinstance(found, list) else []
        with atomic_write(files.environment) as f:
            f.write(json.dumps([*environments, describe_environment()], indent=2).encode())
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{files.folder}: cannot be written ({reason}): set OUTPUT_DIR to a folder that can"
        ) from None
