"""Train or evaluate the detector that a detectron2 config describes."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from torch import nn

from fbnetv3.detection.data.detection_datasets import check_class_names
from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.training.detector_builders import (
    build_detection_model,
    build_detector_optimizer,
    check_and_load_datasets,
    choose_seed,
    detectron2_process_group,
    scale_to_world_size,
)
from fbnetv3.detection.training.detector_checkpoint import (
    EMA_KEY,
    FBNetV3Checkpointer,
    load_detector,
    newest_checkpoint,
)
from fbnetv3.detection.training.detector_evaluation import Results, evaluate_datasets
from fbnetv3.detection.training.detector_figures import plot_detection_curves, plot_examples
from fbnetv3.detection.training.detectron2_hooks import (
    CheckpointHook,
    EMAHook,
    EvaluationHook,
    ProgressWriter,
    SeedingHook,
    build_trainer,
)
from fbnetv3.errors import UsageError
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupts
from fbnetv3.training.run_state.checkpoints import State, save_checkpoint
from fbnetv3.training.run_state.fingerprint import (
    DETECTOR_IGNORED_KEYS,
    check_not_longer,
    check_same_run,
    config_fingerprint,
)
from fbnetv3.training.run_state.metrics import truncate_metrics
from fbnetv3.training.run_state.run_description import log_summary
from fbnetv3.training.run_state.run_folder import RunFolder, run_lock
from fbnetv3.utils.json_lines import append_json_line
from fbnetv3.utils.logging_setup import log_on_rank_0, log_to_file, quiet_detectron2
from fbnetv3.utils.random_state import derive_seed

logger = logging.getLogger(__name__)

METRICS_PERIOD = 20
"""Steps between two lines of progress and of metrics."""


@dataclass(frozen=True)
class DetectorRunResult:
    """Result of a detector's training run.

    Attributes:
        results: last evaluation, see `evaluate_datasets`; empty without test datasets.
        run_folder: the output folder.
        detections: folder with the detections of the last evaluation, a subfolder per dataset.
        examples: figure of detections next to annotations.
    """

    results: Results
    run_folder: RunFolder
    detections: Path
    examples: Path


def train_detector(cfg: CfgNode, *, resume: bool = False) -> DetectorRunResult:
    """Train and evaluate the detector that a config describes.

    Nothing is written until the config has been validated.

    Args:
        cfg: from `load_detection_config`.
        resume: resume from the newest checkpoint in `OUTPUT_DIR`, if there is one.

    Raises:
        UserError: wrong config, missing data, an output folder that is in use or cannot be written, or a non-finite
            loss.
    """
    run_folder = RunFolder(cfg.OUTPUT_DIR)
    with (
        detectron2_process_group(cfg) as group,
        torch.random.fork_rng(),
        log_on_rank_0(group.rank),
        quiet_detectron2(),
    ):
        cfg = scale_to_world_size(cfg, group)
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
        check_and_load_datasets(cfg, group, training=True)
        checkpoint = group.broadcast(newest_checkpoint(run_folder.checkpoints) if group.is_rank_0 else None)
        self.seed = choose_seed(cfg, checkpoint, group)
        self.loader = build_train_loader(cfg, self.seed, group)
        check_class_names(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])

        # Network and optimizer
        torch.manual_seed(derive_seed(self.seed))
        self.model = build_detection_model(cfg)
        if cfg.MODEL.WEIGHTS:
            load_detector(self.model, cfg.MODEL.WEIGHTS, new_classes=True)
        self.ema = ModelEMA(self.model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
        self.optimizer = build_detector_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type) if cfg.SOLVER.AMP.ENABLED else None

        # State of the run
        self.metadata: dict[str, Any] = {
            "config": config_fingerprint(cfg, DETECTOR_IGNORED_KEYS),
            "seed": self.seed,
        }
        self.checkpointer = self._build_checkpointer()
        self.start = self._resume(checkpoint)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model, or the raw one without EMA."""
        return self.model if self.ema is None else self.ema.module

    def _build_checkpointer(self) -> FBNetV3Checkpointer:
        checkpointables = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        checkpointables[EMA_KEY] = self.ema and self.ema.module
        return FBNetV3Checkpointer(
            self.model,
            str(self.run_folder.checkpoints),
            keep=self.cfg.SOLVER.CHECKPOINTS,
            **{key: value for key, value in checkpointables.items() if value is not None},
        )

    def _resume(self, checkpoint: tuple[Path, State] | None) -> int:
        """Restore a checkpoint and return the number of completed steps; 0 without one."""
        if checkpoint is None:
            return 0
        path, state = checkpoint
        if "metadata" not in state or "optimizer" not in state:
            raise UsageError(
                f"{path}: cannot resume: it was not written by this training run; choose another OUTPUT_DIR"
            )
        check_same_run(state["metadata"]["config"], self.metadata["config"], path)
        completed = state["iteration"] + 1
        check_not_longer(completed, self.cfg.SOLVER.MAX_ITER, "steps", "SOLVER.MAX_ITER", path)
        self.checkpointer.restore(state)
        # ModelEMA counts updates, which determine its decay, outside the state dict
        if self.ema is not None:
            self.ema.n_averaged.fill_(completed)
        return completed

    def execute(self) -> DetectorRunResult:
        """Train to the end and evaluate. Files are written from here on."""
        if self.group.is_rank_0:
            self.run_folder.prepare(self.cfg)
        with self._log_to_file():
            self._log_summary()
            trainer = self._build_trainer()
            with deferred_interrupts():
                if self.start < self.cfg.SOLVER.MAX_ITER:
                    self._train(trainer)
                # The final evaluation always runs, so that a complete run can be evaluated again
                results = self._evaluate(self.detections)
                check_interrupt()
            if self.group.is_rank_0 and results:
                self._write_results(results)
        return DetectorRunResult(results, self.run_folder, self.detections, self.examples)

    def _build_trainer(self) -> Any:
        """Build the trainer with its hooks, in the order in which they must run after a step."""
        parallel_model = self.group.data_parallel(self.model, self.device)
        trainer = build_trainer(
            parallel_model, self.loader, self.optimizer, self.group, self.run_folder.diverged, self.scaler
        )
        # Continue the stream of images where the checkpoint left off
        self.loader.sampler.start = self.start
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                SeedingHook(self.seed, self.group.rank),
                hooks.LRScheduler(self.optimizer, self.scheduler),
                EMAHook(self.ema, self.model) if self.ema is not None else None,
                CheckpointHook(self._save_checkpoint, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.group),
                EvaluationHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate_to_scalars, self._save_checkpoint),
                hooks.PeriodicWriter(self._build_writers(), METRICS_PERIOD) if self.group.is_rank_0 else None,
            ]
        )
        return trainer

    def _build_writers(self) -> list[Any]:
        """Build the writers of metrics, after dropping what was written after the checkpoint."""
        truncate_metrics(self.run_folder.metrics, self.start - 1, key="iteration")
        return [
            ProgressWriter(self.cfg.SOLVER.MAX_ITER, self.start),
            JSONWriter(str(self.run_folder.metrics)),
            TensorboardXWriter(str(self.run_folder.tensorboard), purge_step=self.start),
        ]

    def _train(self, trainer: Any) -> None:
        if self.start:
            logger.info("resuming after %d steps", self.start)
        if self.group.is_rank_0:
            self.run_folder.weights.unlink(missing_ok=True)  # of a shorter run that is being extended
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

    def _evaluate_to_scalars(self) -> dict[str, float]:
        return _to_scalars(self._evaluate())

    def _write_results(self, results: Results) -> None:
        entry = {"iteration": self.cfg.SOLVER.MAX_ITER, **_to_scalars(results)}
        append_json_line(self.run_folder.metrics, entry)
        plot_detection_curves(self.run_folder.metrics, self.run_folder.curve)
        plot_examples(self.cfg, self.evaluated_model, self.cfg.DATASETS.TEST[0], self.examples)

    def _log_to_file(self) -> contextlib.AbstractContextManager:
        if not self.group.is_rank_0:
            return contextlib.nullcontext()
        return log_to_file(self.run_folder.log, "fbnetv3", "detectron2", "fvcore")

    def _log_summary(self) -> None:
        solver = self.cfg.SOLVER
        details = [f"{self.loader.images} images", f"{solver.IMS_PER_BATCH} per step", f"{solver.MAX_ITER} steps"]
        datasets = ", ".join(self.cfg.DATASETS.TRAIN)
        log_summary(self.cfg.MODEL.FBNETV3.ARCH, self.model, datasets, details, self.device, self.group)
        if not self.cfg.DATASETS.TEST:
            logger.info("DATASETS.TEST is empty: nothing will be evaluated")


def evaluate_detector(cfg: CfgNode) -> Results:
    """Evaluate `MODEL.WEIGHTS`, by default those in `OUTPUT_DIR`, on `DATASETS.TEST`. Writes nothing.

    Averaged weights (EMA) are preferred if the file has both.

    Raises:
        UserError: wrong config, missing data or weights.
    """
    with detectron2_process_group(cfg) as group, log_on_rank_0(group.rank), quiet_detectron2():
        if not cfg.DATASETS.TEST:
            raise UsageError("DATASETS.TEST is empty: name a dataset to evaluate on, or set DATASETS.OWN")
        check_and_load_datasets(cfg, group)
        check_class_names(cfg, cfg.DATASETS.TEST)
        weights = cfg.MODEL.WEIGHTS or _trained_weights(RunFolder(cfg.OUTPUT_DIR))
        model = load_detector(build_detection_model(cfg), weights)
        logger.info("evaluating %s of %s on %s", cfg.MODEL.FBNETV3.ARCH, weights, ", ".join(cfg.DATASETS.TEST))
        with deferred_interrupts():
            return evaluate_datasets(cfg, model, cfg.DATASETS.TEST, group)


def _trained_weights(run_folder: RunFolder) -> Path:
    """Return the final weights of a run, else its newest complete checkpoint."""
    if run_folder.weights.exists():
        return run_folder.weights
    newest = newest_checkpoint(run_folder.checkpoints)
    if newest is None:
        raise UsageError(
            "no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to the folder of a run "
            f"({run_folder.path} has none)"
        )
    return newest[0]


def _to_scalars(results: Results) -> dict[str, float]:
    """Flatten results to names such as "bbox/AP50", with the dataset in front if there are several."""
    nested: Any = next(iter(results.values())) if len(results) == 1 else results
    return {key: value for key, value in flatten_results_dict(nested).items() if math.isfinite(value)}
