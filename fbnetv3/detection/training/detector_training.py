"""Train the detector that a detectron2 config describes."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from fbnetv3.detection.anchors.anchor_fitting import resolve_anchors
from fbnetv3.detection.data.detection_datasets import Classes, load_dataset_dicts, prepare_datasets
from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.data.detector_class_matching import model_classes
from fbnetv3.detection.detector_run_result import DetectorResult, describe_detector_run
from fbnetv3.detection.models.classifier_preprocessing import use_classifier_preprocessing
from fbnetv3.detection.models.fbnetv3_backbone import arch_name
from fbnetv3.detection.models.norm_layers import EQUAL_NORMS
from fbnetv3.detection.recorded_detectors import describe_detector, recorded_classes
from fbnetv3.detection.training.augmented_figure import draw_training_inputs, first_inputs
from fbnetv3.detection.training.best_detector import PeriodicEvaluationHook, selection_precision
from fbnetv3.detection.training.checked_trainer import (
    LOG_PERIOD,
    AutocastModel,
    CheckedAMPTrainer,
    CheckedTrainer,
    ProgressWriter,
)
from fbnetv3.detection.training.detector_checkpoint import load_detector, newest_checkpoint
from fbnetv3.detection.training.detector_evaluation import evaluate_datasets, to_scalars
from fbnetv3.detection.training.detector_figures import plot_detection_curves, plot_examples
from fbnetv3.detection.training.detector_setup import (
    build_detector,
    cudnn_benchmark,
    detector_process_group,
    scale_to_world_size,
    training_precision,
    use_own_gpu,
)
from fbnetv3.detection.training.detector_state import DetectorState
from fbnetv3.detection.training.evaluation_tables import Results
from fbnetv3.detection.unsupported_keys import check_supported_keys
from fbnetv3.errors import Terminated
from fbnetv3.training.devices.device_memory import explain_out_of_memory
from fbnetv3.training.optimizers import is_fused
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt, deferred_interrupts
from fbnetv3.training.reports.evaluation_report import warn_on_failure
from fbnetv3.training.run_state.checkpoints import State
from fbnetv3.training.run_state.data_fingerprint import fingerprint_of_names
from fbnetv3.training.run_state.detector_record import DetectorRecord, detector_record_from_metadata
from fbnetv3.training.run_state.fingerprint import DETECTOR_IGNORED_KEYS, config_fingerprint
from fbnetv3.training.run_state.metrics import truncate_metrics
from fbnetv3.training.run_state.run_description import log_summary, package_versions
from fbnetv3.training.run_state.run_folder import RunFolder, run_lock
from fbnetv3.utils.json_lines import append_json_line
from fbnetv3.utils.logging_setup import log_to_file, quiet_detectron2, quiet_other_ranks
from fbnetv3.utils.plotting import save_figure
from fbnetv3.utils.random_state import derive_seed, forked_random_state, seed_device

logger = logging.getLogger(__name__)

_SAVE_MEMORY = "lower SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, or set SOLVER.AMP.ENABLED True"


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
    `OUTPUT_DIR`, if there is one. A device with too little memory is a DeviceMemoryError.
    """
    check_supported_keys(cfg)
    run_folder = RunFolder(cfg.OUTPUT_DIR)
    with (
        detector_process_group(cfg) as group,
        quiet_other_ranks(group.rank),
        quiet_detectron2(),
        cudnn_benchmark(cfg.CUDNN_BENCHMARK),
    ):
        cfg = use_own_gpu(scale_to_world_size(cfg, group), group)
        cfg = use_classifier_preprocessing(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        with (
            forked_random_state(device),
            explain_out_of_memory(device, _SAVE_MEMORY),
            run_lock(run_folder, group, resume) as acquire_lock,
        ):
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
        self.examples = run_folder.path / "detections.png"

        # Data, with the classes and in the order of the checkpoint if there is one
        checkpoint = group.broadcast(newest_checkpoint(run_folder.checkpoints) if group.is_rank_0 else None)
        record = detector_record_from_metadata(checkpoint[1], str(checkpoint[0])) if checkpoint else None
        prepare_datasets(cfg, group, training=True, skeleton=record.skeleton if record else None)
        self.seed = self._choose_seed(checkpoint)
        self.classes = self._match_classes(record)
        self.names = list(self.classes.values()) or None  # None if the data do not name them
        self.loader = build_train_loader(cfg, self.seed, group, self.names)

        # Network and optimizer
        trained = checkpoint[1].get("metadata", {}).get("config", {}) if checkpoint else {}
        images = self.loader.dataset.dicts  # type: ignore[attr-defined]
        cfg, self.anchors = group.broadcast(resolve_anchors(cfg, images, trained))
        self.cfg = cfg
        seed_device(derive_seed(self.seed), self.device)
        model = build_detector(cfg)
        if cfg.MODEL.WEIGHTS:
            load_detector(model, cfg.MODEL.WEIGHTS, new_classes=True, classes=self.names or ())
        self.state = DetectorState(cfg, model, group, run_folder, self._describe())
        self.start = self.state.resume(checkpoint) if checkpoint else 0

    def _choose_seed(self, checkpoint: tuple[Path, State] | None) -> int:
        """Return the config's seed, or a random one, which a resumed run keeps."""
        if self.cfg.SEED >= 0:
            return self.cfg.SEED
        random_seed = self.group.broadcast(int.from_bytes(os.urandom(4), "little"))
        metadata = checkpoint[1].get("metadata", {}) if checkpoint else {}
        return metadata.get("seed", random_seed)

    def _match_classes(self, record: DetectorRecord | None) -> Classes:
        """Return the classes of the checkpoint, or of the training data, which the test data must have."""
        datasets = [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST]
        for name in self.cfg.DATASETS.TRAIN:
            load_dataset_dicts(name)  # registers the classes
        return model_classes(self.cfg, datasets, recorded_classes(record))

    def _describe(self) -> dict[str, Any]:
        """Return what checkpoints record about the run: its network, data, config and versions."""
        datasets = [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST]
        data = {
            name: fingerprint_of_names(image["file_name"] for image in load_dataset_dicts(name))
            for name in datasets
        }
        return {
            **describe_detector(self.cfg, self.classes, data).to_metadata(),
            "config": config_fingerprint(self.cfg, DETECTOR_IGNORED_KEYS),
            "seed": self.seed,
            "versions": package_versions(),
        }

    def execute(self) -> DetectorRunResult:
        """Train to the end and evaluate. Files are written from here on."""
        log: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.group.is_rank_0:
            self.run_folder.prepare(self.cfg)
            log = log_to_file(self.run_folder.log, "fbnetv3", "detectron2", "fvcore")
        with log:
            self._log_summary()
            trainer = self._build_trainer()
            result = DetectorResult(self.run_folder, self.cfg.LOG.RESULTS, is_resumed=self.start > 0)
            completed = self.cfg.SOLVER.MAX_ITER
            with deferred_interrupts():
                if self.start < completed:
                    self._draw_training_inputs()
                    completed = self._train(trainer)
                # The final evaluation always runs, so that a complete run can be evaluated again
                results = self._evaluate(completed, self.run_folder.detections)
                if self.start < completed:
                    # Again, with their metrics
                    self.state.save_weights(self.run_folder.weights, completed)
                check_interrupt()
            if self.group.is_rank_0 and results:
                best = self.state.best
                description = describe_detector_run(self.cfg, self.state.model)
                result.write(description, best.metrics, best.precision)
                scalars = {"iteration": completed, **to_scalars(results)}
                append_json_line(self.run_folder.metrics, scalars)
                plot_detection_curves(self.run_folder.metrics, self.run_folder.curve)
                model = self.state.evaluated_model
                plot_examples(self.cfg, model, self.cfg.DATASETS.TEST[0], self.examples, classes=self.names)
        return DetectorRunResult(results, self.run_folder, self.run_folder.detections, self.examples)

    def _log_summary(self) -> None:
        solver = self.cfg.SOLVER
        details = [f"{len(self.loader.dataset)} images"]  # type: ignore[arg-type]
        details += [f"{solver.IMS_PER_BATCH} per step", f"{solver.MAX_ITER} steps"]
        datasets = ", ".join(self.cfg.DATASETS.TRAIN)
        log_summary(arch_name(self.cfg), self.state.model, datasets, details, self.device, self.group)
        if self.anchors:
            logger.info(self.anchors)
        if not self.cfg.DATASETS.TEST:
            logger.info("DATASETS.TEST is empty: nothing will be evaluated")

    def _draw_training_inputs(self) -> None:
        """Save a picture of the first inputs, unless the run resumes."""
        file = self.run_folder.augmented_images
        if self.group.is_rank_0 and not self.start:
            with warn_on_failure(file):
                save_figure(draw_training_inputs(first_inputs(self.loader), self.cfg), file)

    def _build_trainer(self) -> CheckedTrainer:
        """Build the trainer with its hooks, in the order in which they must run after a step."""
        cfg, state = self.cfg, self.state
        model = self.group.data_parallel(state.model, self.device, EQUAL_NORMS)
        precision = training_precision(cfg)
        if precision is torch.bfloat16:
            model = AutocastModel(model, self.device, precision)
        if state.scaler is None:
            trainer = CheckedTrainer(model, self.loader, state.optimizer)
        else:
            trainer = CheckedAMPTrainer(model, self.loader, state.optimizer, grad_scaler=state.scaler)
        trainer.group = self.group
        trainer.device = self.device
        trainer.reads_late = is_fused(state.optimizer)
        trainer.raw_model = state.model
        trainer.diverged_file = self.run_folder.diverged
        # Continue the stream of images where the checkpoint left off
        sampler: Any = self.loader.batch_sampler
        sampler.start = self.start
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                # Every step samples proposals from a seed of its own, for an exact resume
                hooks.CallbackHook(before_step=self._seed_step),
                hooks.LRScheduler(state.optimizer, state.scheduler),
                hooks.CallbackHook(after_step=self._after_step),
                PeriodicEvaluationHook(
                    cfg.TEST.EVAL_PERIOD,
                    cfg.SOLVER.PATIENCE,
                    state.best,
                    self._evaluate_between_steps,
                    state.save_checkpoint,
                ),
                hooks.PeriodicWriter(self._build_writers(), LOG_PERIOD),
            ]
        )
        return trainer

    def _build_writers(self) -> list[EventWriter]:
        if not self.group.is_rank_0:
            return []
        # Drop what was written after the checkpoint
        truncate_metrics(self.run_folder.metrics, self.start - 1, key="iteration")
        return [
            ProgressWriter(self.cfg.SOLVER.MAX_ITER, self.start),
            JSONWriter(str(self.run_folder.metrics), window_size=LOG_PERIOD),
            TensorboardXWriter(str(self.run_folder.tensorboard), purge_step=self.start),
        ]

    def _seed_step(self, trainer: CheckedTrainer) -> None:
        seed_device(derive_seed(self.seed, trainer.iter, self.group.rank), self.device)

    def _after_step(self, trainer: CheckedTrainer) -> None:
        """Update the average, write a checkpoint if one is due, and stop after an interrupt."""
        state = self.state
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        completed = trainer.iter + 1
        is_last = completed == trainer.max_iter
        # All processes see the signal after the same step
        interrupted = trainer.any_interrupt and agree_on_interrupt(self.group)
        saves = interrupted or is_last or completed % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0
        evaluates = self.cfg.TEST.EVAL_PERIOD > 0 and completed % self.cfg.TEST.EVAL_PERIOD == 0
        # Only weights of finite losses are saved and evaluated, and the log includes this step
        if saves or evaluates or completed % LOG_PERIOD == 0:
            trainer.read_losses()
        if saves:
            state.save_checkpoint(completed)
        if interrupted:
            check_interrupt()

    def _evaluate_between_steps(self, completed: int) -> dict[str, float]:
        """Evaluate; if this is interrupted, write a checkpoint."""
        try:
            return to_scalars(self._evaluate(completed))
        except (KeyboardInterrupt, Terminated):
            self.state.save_checkpoint(completed)
            raise

    def _train(self, trainer: CheckedTrainer) -> int:
        """Train, write the final weights, and return the number of completed steps."""
        if self.start:
            logger.info("resuming after %d steps", self.start)
        if self.group.is_rank_0:
            # Existing weights are final only for a shorter run, which is being extended
            self.run_folder.weights.unlink(missing_ok=True)
        trainer.train(self.start, self.cfg.SOLVER.MAX_ITER)
        self.state.save_weights(self.run_folder.weights, trainer.iter)
        return trainer.iter

    def _evaluate(self, completed: int, folder: Path | None = None) -> Results:
        """Evaluate after a number of steps, and write the weights if they are the best so far."""
        state = self.state
        state.synchronize()
        results = evaluate_datasets(
            self.cfg, state.evaluated_model, self.cfg.DATASETS.TEST, self.group, folder, self.names
        )
        # Only rank 0 has the results
        precision, metrics = self.group.broadcast((selection_precision(results), to_scalars(results)))
        if metrics and state.best.add(completed, precision, metrics):
            state.save_weights(self.run_folder.best, completed)
        return results
