"""Train or evaluate the detector that a detectron2 config describes."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn, optim

from fbnetv3.detection.data.detection_datasets import check_class_names, prepare_datasets
from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.training.augmented_figure import draw_training_inputs, first_inputs
from fbnetv3.detection.training.checked_trainer import (
    LOG_PERIOD,
    CheckedAMPTrainer,
    CheckedTrainer,
    ProgressWriter,
)
from fbnetv3.detection.training.detector_checkpoint import (
    EMA_KEY,
    FBNetV3Checkpointer,
    load_detector,
    newest_checkpoint,
)
from fbnetv3.detection.training.detector_evaluation import Results, evaluate_datasets
from fbnetv3.detection.training.detector_figures import plot_detection_curves, plot_examples
from fbnetv3.errors import Terminated, UsageError
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import ProcessGroup, process_group
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt, deferred_interrupts
from fbnetv3.training.reports.evaluation_report import warn_on_failure
from fbnetv3.training.run_state.checkpoints import State, save_checkpoint
from fbnetv3.training.run_state.fingerprint import (
    DETECTOR_IGNORED_KEYS,
    check_length,
    check_same_run,
    config_fingerprint,
)
from fbnetv3.training.run_state.metrics import truncate_metrics
from fbnetv3.training.run_state.run_description import log_summary
from fbnetv3.training.run_state.run_folder import RunFolder, run_lock, select_weights
from fbnetv3.utils.json_lines import append_json_line
from fbnetv3.utils.logging_setup import log_to_file, quiet_detectron2, quiet_other_ranks
from fbnetv3.utils.plotting import save_figure
from fbnetv3.utils.random_state import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorRunResult:
    """Result of a detector's training run."""

    results: Results  # see `evaluate_datasets`; empty without test datasets
    run_folder: RunFolder
    detections: Path  # folder of the last evaluation, with a subfolder per dataset
    examples: Path  # figure of detections next to annotations


def train_detector(cfg: CfgNode, *, resume: bool = False) -> DetectorRunResult:
    """Train and evaluate the detector that a config from `load_detection_config` describes.

    Nothing is written until the config has been validated. `resume` continues from the newest checkpoint in
    `OUTPUT_DIR`, if there is one.
    """
    run_folder = RunFolder(cfg.OUTPUT_DIR)
    with (
        _process_group(cfg) as group,
        torch.random.fork_rng(),
        quiet_other_ranks(group.rank),
        quiet_detectron2(),
    ):
        cfg = _scale_to_world_size(cfg, group)
        with run_lock(run_folder, group, resume) as acquire_lock:
            run = _DetectorRun(cfg, group, run_folder)
            acquire_lock()
            return run.execute()


class _DetectorRun:
    """All parts of a training run, built and resumed from its checkpoint without writing anything."""

    def __init__(self, cfg: CfgNode, group: ProcessGroup, run_folder: RunFolder) -> None:
        self.cfg = cfg
        self.group = group
        self.run_folder = run_folder
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.detections = run_folder.path / "inference"
        self.examples = run_folder.path / "detections.png"

        # Data, in the order of the checkpoint's seed if there is one
        prepare_datasets(cfg, group, training=True)
        checkpoint = group.broadcast(newest_checkpoint(run_folder.checkpoints) if group.is_rank_0 else None)
        self.seed = cfg.SEED
        if cfg.SEED < 0:  # random, but a resumed run keeps its own
            metadata = checkpoint[1].get("metadata", {}) if checkpoint else {}
            random_seed = group.broadcast(int.from_bytes(os.urandom(4), "little"))
            self.seed = metadata.get("seed", random_seed)
        self.loader = build_train_loader(cfg, self.seed, group)
        check_class_names(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])

        # Network and optimizer
        torch.manual_seed(derive_seed(self.seed))
        self.model = _build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            load_detector(self.model, cfg.MODEL.WEIGHTS, new_classes=True)
        self.ema = ModelEMA(self.model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
        self.optimizer = build_detector_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type) if cfg.SOLVER.AMP.ENABLED else None

        # State of the run
        self.metadata = {"config": config_fingerprint(cfg, DETECTOR_IGNORED_KEYS), "seed": self.seed}
        self.checkpointer = self._build_checkpointer()
        self.start = self._resume(checkpoint)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model, or the raw one if the run has no EMA."""
        return self.model if self.ema is None else self.ema.module

    def _build_checkpointer(self) -> FBNetV3Checkpointer:
        checkpointables = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        checkpointables[EMA_KEY] = self.ema and self.ema.module
        return FBNetV3Checkpointer(
            self.model,
            str(self.run_folder.checkpoints),
            keep=self.cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            **{key: value for key, value in checkpointables.items() if value is not None},
        )

    def _resume(self, checkpoint: tuple[Path, State] | None) -> int:
        """Restore a checkpoint and return the number of completed steps; 0 without one."""
        if checkpoint is None:
            return 0
        path, state = checkpoint
        saved_config = state.get("metadata", {}).get("config", {})
        check_same_run(saved_config, self.metadata["config"], path)
        completed = state["iteration"] + 1
        check_length(completed, self.cfg.SOLVER.MAX_ITER, "steps", "SOLVER.MAX_ITER", path)
        self.checkpointer.restore(state)
        # ModelEMA counts updates, which determine its decay, outside the state dict
        if self.ema is not None:
            self.ema.n_averaged.fill_(completed)
        return completed

    def execute(self) -> DetectorRunResult:
        """Train to the end and evaluate. Files are written from here on."""
        solver = self.cfg.SOLVER
        log: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.group.is_rank_0:
            self.run_folder.prepare(self.cfg)
            log = log_to_file(self.run_folder.log, "fbnetv3", "detectron2", "fvcore")
        with log:
            details = [f"{len(self.loader.dataset)} images"]  # type: ignore[arg-type]
            details += [f"{solver.IMS_PER_BATCH} per step", f"{solver.MAX_ITER} steps"]
            datasets = ", ".join(self.cfg.DATASETS.TRAIN)
            log_summary(self.cfg.MODEL.FBNETV3.ARCH, self.model, datasets, details, self.device, self.group)
            if not self.cfg.DATASETS.TEST:
                logger.info("DATASETS.TEST is empty: nothing will be evaluated")
            trainer = self._build_trainer()
            with deferred_interrupts():
                if self.start < solver.MAX_ITER:
                    self._draw_training_inputs()
                    self._train(trainer)
                # The final evaluation always runs, so that a complete run can be evaluated again
                results = self._evaluate(self.detections)
                check_interrupt()
            if self.group.is_rank_0 and results:
                append_json_line(
                    self.run_folder.metrics, {"iteration": solver.MAX_ITER, **_to_scalars(results)}
                )
                plot_detection_curves(self.run_folder.metrics, self.run_folder.curve)
                plot_examples(self.cfg, self.evaluated_model, self.cfg.DATASETS.TEST[0], self.examples)
        return DetectorRunResult(results, self.run_folder, self.detections, self.examples)

    def _draw_training_inputs(self) -> None:
        """Save a picture of the first inputs, unless the run resumes."""
        file = self.run_folder.augmented_images
        if self.group.is_rank_0 and not self.start:
            with warn_on_failure(file):
                save_figure(draw_training_inputs(first_inputs(self.loader), self.cfg), file)

    def _build_trainer(self) -> CheckedTrainer:
        """Build the trainer with its hooks, in the order in which they must run after a step."""
        model = self.group.data_parallel(self.model, self.device)
        if self.scaler is None:
            trainer = CheckedTrainer(model, self.loader, self.optimizer)
        else:
            trainer = CheckedAMPTrainer(model, self.loader, self.optimizer, grad_scaler=self.scaler)
        trainer.group = self.group
        trainer.diverged_file = self.run_folder.diverged
        # Continue the stream of images where the checkpoint left off
        sampler: Any = self.loader.batch_sampler
        sampler.start = self.start
        evaluate = partial(self._evaluate_between_steps, trainer)
        writers: list[EventWriter] = []
        if self.group.is_rank_0:
            # Drop what was written after the checkpoint
            truncate_metrics(self.run_folder.metrics, self.start - 1, key="iteration")
            writers = [
                ProgressWriter(self.cfg.SOLVER.MAX_ITER, self.start),
                JSONWriter(str(self.run_folder.metrics), window_size=LOG_PERIOD),
                TensorboardXWriter(str(self.run_folder.tensorboard), purge_step=self.start),
            ]
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                # Every step samples proposals from a seed of its own, for an exact resume
                hooks.CallbackHook(before_step=self._seed_step),
                hooks.LRScheduler(self.optimizer, self.scheduler),
                hooks.CallbackHook(after_step=self._after_step),
                hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate, eval_after_train=False),
                hooks.PeriodicWriter(writers, LOG_PERIOD),
            ]
        )
        return trainer

    def _seed_step(self, trainer: CheckedTrainer) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.iter, self.group.rank))

    def _after_step(self, trainer: CheckedTrainer) -> None:
        """Update the average, write a checkpoint if one is due, and stop after an interrupt."""
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        completed = trainer.iter + 1
        # All processes see the signal after the same step
        interrupted = agree_on_interrupt(self.group)
        if (
            interrupted
            or completed % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0
            or completed == trainer.max_iter
        ):
            self._save_checkpoint(completed)
        if interrupted:
            check_interrupt()

    def _evaluate_between_steps(self, trainer: CheckedTrainer) -> dict[str, float]:
        """Evaluate; if this is interrupted, write a checkpoint."""
        try:
            return _to_scalars(self._evaluate())
        except (KeyboardInterrupt, Terminated):
            self._save_checkpoint(trainer.iter + 1)
            raise

    def _train(self, trainer: CheckedTrainer) -> None:
        if self.start:
            logger.info("resuming after %d steps", self.start)
        if self.group.is_rank_0:
            # Existing weights are final only for a shorter run, which is being extended
            self.run_folder.weights.unlink(missing_ok=True)
        trainer.train(self.start, self.cfg.SOLVER.MAX_ITER)
        if self.group.is_rank_0:
            # The final weights have no optimizer state
            weights = {"model": self.model.state_dict(), "metadata": self.metadata}
            if self.ema is not None:
                weights[EMA_KEY] = self.ema.module.state_dict()
            save_checkpoint(self.run_folder.weights, weights)

    def _save_checkpoint(self, completed: int) -> None:
        # BatchNorm statistics differ between processes: all continue with those of rank 0
        self.group.broadcast_buffers(self.model, self.ema and self.ema.module)
        self.checkpointer.save(f"step_{completed:08d}", iteration=completed - 1, metadata=self.metadata)

    def _evaluate(self, folder: Path | None = None) -> Results:
        self.group.broadcast_buffers(self.model, self.ema and self.ema.module)
        return evaluate_datasets(self.cfg, self.evaluated_model, self.cfg.DATASETS.TEST, self.group, folder)


def evaluate_detector(cfg: CfgNode, keep: Collection[str] = ()) -> Results:
    """Evaluate the weights of the run in `OUTPUT_DIR`, or `MODEL.WEIGHTS`, on `DATASETS.TEST`. Writes nothing.

    `keep` are the keys that are given on the command line; see `select_weights`.

    Averaged weights (EMA) are preferred if the file has both.
    """
    with _process_group(cfg) as group, quiet_other_ranks(group.rank), quiet_detectron2():
        if not cfg.DATASETS.TEST:
            raise UsageError(
                "DATASETS.TEST is empty: name a dataset to evaluate on, or set DATASETS.CUSTOM"
            )
        prepare_datasets(cfg, group)
        check_class_names(cfg, cfg.DATASETS.TEST)
        weights = select_weights(cfg, keep)
        if not weights:
            raise UsageError(
                f"{cfg.OUTPUT_DIR}: has no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to the folder of a run"
            )
        model = load_detector(_build_model(cfg), weights)
        logger.info(
            "evaluating %s of %s on %s", cfg.MODEL.FBNETV3.ARCH, weights, ", ".join(cfg.DATASETS.TEST)
        )
        with deferred_interrupts():
            return evaluate_datasets(cfg, model, cfg.DATASETS.TEST, group)


def _to_scalars(results: Results) -> dict[str, float]:
    """Flatten results to names such as "bbox/AP50", with the dataset in front if there are several."""
    nested: Any = next(iter(results.values())) if len(results) == 1 else results
    return {key: value for key, value in flatten_results_dict(nested).items() if math.isfinite(value)}


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


@contextlib.contextmanager
def _process_group(cfg: CfgNode) -> Iterator[ProcessGroup]:
    """Join the process group; make detectron2 forget the group of an earlier run in this process."""
    with process_group(cfg.MODEL.DEVICE) as group:
        # detectron2 caches the group for exchanges on the CPU
        if hasattr(comm, "_get_global_gloo_group"):
            comm._get_global_gloo_group.cache_clear()
        yield group


def _build_model(cfg: CfgNode) -> nn.Module:
    """Build the model in the config's memory format; only weights of MODEL.FBNETV3.WEIGHTS are loaded."""
    model = build_model(cfg)
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.FBNETV3.CHANNELS_LAST else model


def _scale_to_world_size(cfg: CfgNode, group: ProcessGroup) -> CfgNode:
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
