"""From a detectron2 config to a training or an evaluation, and the files that it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from torch import nn, optim

from fbnetv3.config.loading import flat_keys
from fbnetv3.detection.data.detection_datasets import (
    TrainLoader,
    build_train_loader,
    check_classes,
    check_data,
    load_dicts,
)
from fbnetv3.detection.training.detection_evaluation import Results, evaluate_detector
from fbnetv3.detection.training.detection_trainer import (
    Averaging,
    Evaluating,
    ProgressLines,
    Saving,
    Seeding,
    build_trainer,
)
from fbnetv3.detection.training.detector_checkpoint import (
    EMA_KEY,
    FBNetV3Checkpointer,
    load_detector,
    newest_checkpoint,
)
from fbnetv3.detection.training.training_figures import draw_curves, draw_examples
from fbnetv3.errors import UsageError
from fbnetv3.training.classifier_training import prepare_output
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import World, joined
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupt
from fbnetv3.training.run_state.checkpoints import save
from fbnetv3.training.run_state.run_folder import RunFiles
from fbnetv3.training.run_state.run_lock import RunLock
from fbnetv3.utils.files import atomic_write
from fbnetv3.utils.logging_setup import log_on_rank_0, log_to_file
from fbnetv3.utils.quiet_to_merge import without_advice
from fbnetv3.utils.random_state import derive_seed

logger = logging.getLogger(__name__)

# A checkpoint's path, and what it holds; None without one.
Found = tuple[Path, dict[str, Any]] | None
# Steps between two lines of progress and of metrics.
PERIOD = 20


@dataclass(frozen=True)
class DetectionResult:
    """What a training came to.

    Attributes:
        results: of its last evaluation, see `evaluate_detector`; empty where there is nothing to evaluate on.
        files: where it left what.
        detections: the folder with the detections of the last evaluation, a folder for each data set.
        examples: a picture of detections on test images beside what is annotated.
    """

    results: Results
    files: RunFiles
    detections: Path
    examples: Path


def run_training(cfg: CfgNode, *, resume: bool = False) -> DetectionResult:
    """Train and evaluate the detector that a config describes. Nothing is written before all of it makes sense.

    Args:
        cfg: from `load_config`.
        resume: go on from the newest checkpoint in `OUTPUT_DIR`, if there is one.

    Raises:
        UserError: a wrong config, missing data, an output folder that is in use or cannot be written, a loss that is
            not finite.
    """
    with _joined(cfg) as world, torch.random.fork_rng(), log_on_rank_0(world.rank), without_advice():
        return _run_training(cfg, world, resume)


def _run_training(cfg: CfgNode, world: World, resume: bool) -> DetectionResult:
    cfg = _scaled(cfg, world)
    files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
    with RunLock(files, world, resume) as lock:
        return _run_locked(cfg, world, files, lock)


def _run_locked(cfg: CfgNode, world: World, files: RunFiles, lock: RunLock) -> DetectionResult:
    detections, examples = files.folder / "inference", files.folder / "detections.png"
    if world.is_main:
        check_data(cfg, cfg.DATASETS.TRAIN, need_boxes=True)
        check_data(cfg, cfg.DATASETS.TEST, need_boxes=False)
    for name in cfg.DATASETS.TEST:
        load_dicts(name)
    found = world.broadcast(newest_checkpoint(files.checkpoints) if world.is_main else None)
    seed = _seed(cfg, found, world)
    loader = build_train_loader(cfg, seed, world)
    check_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    torch.manual_seed(derive_seed(seed))
    device = torch.device(cfg.MODEL.DEVICE)
    model = _build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        load_detector(model, cfg.MODEL.WEIGHTS, new_classes=True)
    ema = ModelEMA(model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    scaler = torch.amp.GradScaler(device.type) if cfg.SOLVER.AMP.ENABLED else None
    parts = {"optimizer": optimizer, "scheduler": scheduler, EMA_KEY: ema and ema.module, "scaler": scaler}
    checkpointer = FBNetV3Checkpointer(
        model,
        str(files.checkpoints),
        keep=cfg.SOLVER.CHECKPOINTS,
        **{key: part for key, part in parts.items() if part is not None},
    )
    about = {"config": _decisive_keys(cfg), "seed": seed}
    start = _go_on(checkpointer, found, about, ema, cfg)
    lock.acquire()
    if world.is_main:
        prepare_output(files, cfg)

    def save_checkpoint(done: int) -> None:
        world.share_buffers(model, ema and ema.module)
        checkpointer.save(f"step_{done:08d}", iteration=done - 1, about=about)

    def evaluate(folder: Path | None = None) -> Results:
        world.share_buffers(model, ema and ema.module)
        return evaluate_detector(cfg, model if ema is None else ema.module, cfg.DATASETS.TEST, world, folder)

    with log_to_file(files.log, "fbnetv3", "detectron2", "fvcore") if world.is_main else contextlib.nullcontext():
        _announce(cfg, model, loader, device, world)
        trainer = build_trainer(world.parallel(model, device), loader, optimizer, world, files.diverged, scaler)
        loader.sampler.start = start
        steps = cfg.SOLVER.MAX_ITER
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                Seeding(seed, world.rank),
                hooks.LRScheduler(optimizer, scheduler),
                Averaging(ema, model) if ema is not None else None,
                Saving(save_checkpoint, cfg.SOLVER.CHECKPOINT_PERIOD, world),
                Evaluating(lambda: _flat(evaluate()), cfg.TEST.EVAL_PERIOD, save_checkpoint),
                hooks.PeriodicWriter(_writers(files, start, steps), PERIOD) if world.is_main else None,
            ]
        )
        with deferred_interrupt():
            if start < steps:
                if start:
                    logger.info("going on after %d steps", start)
                if world.is_main:
                    files.weights.unlink(missing_ok=True)  # of a shorter run that goes on now
                trainer.train(start, steps)
                if world.is_main:
                    save(files.weights, _weights(model, ema, about))
            results = evaluate(detections)
            check_interrupt()
        if world.is_main and results:
            _note(files.metrics, {"iteration": steps, **_flat(results)})
            draw_curves(files.metrics, files.curve)
            draw_examples(cfg, model if ema is None else ema.module, cfg.DATASETS.TEST[0], examples)
    return DetectionResult(results, files, detections, examples)


def run_evaluation(cfg: CfgNode) -> Results:
    """Evaluate `MODEL.WEIGHTS`, or without it what `OUTPUT_DIR` holds, on `DATASETS.TEST`. Writes nothing.

    Of weights that hold an average (EMA), it is the average that is evaluated.

    Raises:
        UserError: a wrong config, missing data or weights.
    """
    with _joined(cfg) as world, log_on_rank_0(world.rank), without_advice():
        files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
        source = cfg.MODEL.WEIGHTS or (str(files.weights) if files.weights.exists() else "")
        if not cfg.DATASETS.TEST:
            raise UsageError("DATASETS.TEST is empty: name a data set to evaluate on, or set DATASETS.OWN")
        if world.is_main:
            check_data(cfg, cfg.DATASETS.TEST, need_boxes=False)
        for name in cfg.DATASETS.TEST:
            load_dicts(name)
        check_classes(cfg, cfg.DATASETS.TEST)
        model = _build_model(cfg)
        if not source and (found := newest_checkpoint(files.checkpoints)):
            source = str(found[0])
        if not source:
            raise UsageError(
                f"no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run's folder ({files.folder} has none)"
            )
        load_detector(model, source)
        logger.info("evaluating %s of %s on %s", cfg.MODEL.FBNETV3.ARCH, source, ", ".join(cfg.DATASETS.TEST))
        with deferred_interrupt():
            return evaluate_detector(cfg, model, cfg.DATASETS.TEST, world)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> optim.Optimizer:
    """`SOLVER.OPTIMIZER`, with detectron2's keys for weight decay, biases and clipping."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return detectron2_optimizer(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adam = optim.AdamW(parameters, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, adam)


@contextlib.contextmanager
def _joined(cfg: CfgNode) -> Iterator[World]:
    """`joined`; detectron2 forgets the process group of an earlier training in the same processes."""
    with joined(cfg.MODEL.DEVICE) as world:
        if hasattr(comm, "_get_global_gloo_group"):
            comm._get_global_gloo_group.cache_clear()
        yield world


def _build_model(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg)
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.FBNETV3.CHANNELS_LAST else model


def _scaled(cfg: CfgNode, world: World) -> CfgNode:
    """The config for so many processes, where `SOLVER.REFERENCE_WORLD_SIZE` says for how many it is meant.

    Raises:
        UsageError: the images of a step cannot be shared by so many.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of REFERENCE_WORLD_SIZE {reference}"
        )
    if reference not in (0, world.size):
        logger.info("SOLVER is scaled from %d processes to %d, as detectron2 does", reference, world.size)
    return DefaultTrainer.auto_scale_workers(cfg, world.size)


def _seed(cfg: CfgNode, found: Found, world: World) -> int:
    """`SEED`; where it is negative, that of the run which goes on, or one that nobody has chosen."""
    if cfg.SEED >= 0:
        return cfg.SEED
    fresh = int.from_bytes(os.urandom(4), "little")
    return found[1].get("about", {}).get("seed", fresh) if found else world.broadcast(fresh)


def _decisive_keys(cfg: CfgNode) -> dict[str, Any]:
    """What decides about a run's weights, by key: not where it runs, how long, or what it shows and keeps."""
    left_out = {"MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.FBNETV3.WEIGHTS", "MODEL.FBNETV3.CHANNELS_LAST"}
    left_out |= {"SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS", "SOLVER.REFERENCE_WORLD_SIZE"}
    sections = ("MODEL", "MODEL_EMA", "SOLVER", "INPUT")
    more = ("DATALOADER.ASPECT_RATIO_GROUPING", "DATALOADER.SAMPLER_TRAIN", "DATASETS.TRAIN")
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat_keys(cfg).items()
        if key not in left_out and (key.split(".")[0] in sections or key in more) and "TEST" not in key
    }


def _go_on(
    checkpointer: FBNetV3Checkpointer, found: Found, about: dict[str, Any], ema: ModelEMA | None, cfg: CfgNode
) -> int:
    """Go back to a checkpoint; gives how many steps it has behind it, 0 without one.

    Raises:
        UsageError: it is of another run.
    """
    if found is None:
        return 0
    path, state = found
    if "about" not in state or "optimizer" not in state:
        raise UsageError(f"{path}: is not of a training here: set another OUTPUT_DIR")
    for key, value in about["config"].items():
        if state["about"]["config"].get(key) != value:
            raise UsageError(
                f"{path}: is of a run with another {key} {state['about']['config'].get(key)}, not {value}: "
                "use the config.yaml of that run, or another OUTPUT_DIR"
            )
    done = state["iteration"] + 1
    if done > cfg.SOLVER.MAX_ITER:
        raise UsageError(f"{path}: is {done} steps old already; SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} is less")
    checkpointer.restore(state)
    if ema is not None:
        ema.n_averaged.fill_(done)
    return done


def _weights(model: nn.Module, ema: ModelEMA | None, about: dict[str, Any]) -> dict[str, Any]:
    averaged = {EMA_KEY: ema.module.state_dict()} if ema is not None else {}
    return {"model": model.state_dict(), **averaged, "about": about}


def _flat(results: Results) -> dict[str, float]:
    """Results by names such as "bbox/AP50", with the data set in front where there are several."""
    nested: Any = next(iter(results.values())) if len(results) == 1 else results
    return {key: value for key, value in flatten_results_dict(nested).items() if math.isfinite(value)}


def _writers(files: RunFiles, start: int, steps: int) -> list[Any]:
    _truncate(files.metrics, start)
    return [
        ProgressLines(steps, start),
        JSONWriter(str(files.metrics)),
        TensorboardXWriter(str(files.tensorboard), purge_step=start),
    ]


def _truncate(file: Path, steps: int) -> None:
    """Drop the entries of a metrics file that are ahead of the checkpoint from which a run goes on."""
    if not file.exists():
        return
    kept = io.StringIO()
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            if json.loads(line)["iteration"] < steps:
                kept.write(line + "\n")
    with atomic_write(file) as f:
        f.write(kept.getvalue().encode())


def _note(file: Path, entry: dict[str, float]) -> None:
    with file.open("a") as f:
        f.write(json.dumps(entry, sort_keys=True) + "\n")


def _announce(cfg: CfgNode, model: nn.Module, loader: TrainLoader, device: torch.device, world: World) -> None:
    logger.info(
        "%s (%.2f M parameters) on %s: %d images, %d a step, %d steps, %s",
        cfg.MODEL.FBNETV3.ARCH,
        sum(p.numel() for p in model.parameters()) / 1e6,
        ", ".join(cfg.DATASETS.TRAIN),
        loader.images,
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.SOLVER.MAX_ITER,
        f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else device,
    )
    if world.size > 1:
        logger.info("%d processes, %d images of a step to each", world.size, cfg.SOLVER.IMS_PER_BATCH // world.size)
    if not cfg.DATASETS.TEST:
        logger.info("DATASETS.TEST is empty: nothing will be evaluated")
