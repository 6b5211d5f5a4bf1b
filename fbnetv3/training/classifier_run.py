"""One training run of a classifier: its parts, built from the config, and what it logs about itself."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.data import CorruptImageCounter
from fbnetv3.errors import UserError, WeightsError, is_out_of_memory
from fbnetv3.modeling.qat.quantized_layers import set_ranges
from fbnetv3.modeling.sync_batchnorm import sync_batchnorm
from fbnetv3.training.builders import (
    build_inputs,
    build_model,
    build_objective,
    class_weights_from_config,
    is_multi_label,
    teacher_fingerprint,
)
from fbnetv3.training.devices.autocast_precision import autocast_dtype, with_precision
from fbnetv3.training.devices.device_memory import explain_out_of_memory
from fbnetv3.training.devices.run_device import select_device, synchronizes_batchnorm
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.evaluation.weights_evaluation import evaluate_with_tta
from fbnetv3.training.fine_tuning.batch_size_search import find_batch_size
from fbnetv3.training.fine_tuning.early_stopping_hook import EarlyStoppingHook
from fbnetv3.training.fine_tuning.freezing import freeze
from fbnetv3.training.fine_tuning.quantization_aware import ObserverHook, quantize_for_training
from fbnetv3.training.fine_tuning.run_length import describe_fitted
from fbnetv3.training.losses import Objective
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.recorded_networks import start_from_weights
from fbnetv3.training.reports.report_hooks import build_report_hooks
from fbnetv3.training.run_state.checkpoints import State
from fbnetv3.training.run_state.data_fingerprint import data_fingerprint, describe_change
from fbnetv3.training.run_state.fingerprint import (
    CLASSIFIER_IGNORED_KEYS,
    check_length,
    check_same_run,
    config_fingerprint,
    with_defaults,
)
from fbnetv3.training.run_state.metrics import read_learning_curve
from fbnetv3.training.run_state.network_record import NetworkRecord
from fbnetv3.training.run_state.run_description import log_summary, package_versions
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.solver import base_lr, build_mixup, optimizer_from_config, schedule_from_config
from fbnetv3.training.tracking.run_result import ResultHook, describe_run
from fbnetv3.training.tracking.trackers import check_trackers
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.training.training_hooks import (
    Callback,
    CheckpointHook,
    DivergenceHook,
    EvaluationHook,
    LearningCurveHook,
    MetricsHook,
    ProgressHook,
)
from fbnetv3.utils.logging_setup import log_to_file
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.random_state import derive_seed, seed_device
from fbnetv3.utils.text import describe_error, first_few

logger = logging.getLogger(__name__)

# What must not change when a run is resumed, besides the values in "config"
_SAME_RUN = ("arch", "definition", "num_classes", "in_chans", "steps_per_epoch")


@dataclass(frozen=True)
class RunResult:
    """Result of a training run.

    Attributes:
        metrics: last evaluation: "top1", "top5", "loss", "images", and "ema_top1" and so on for the averaged weights.
        curve: all evaluations, each with its "epoch".
        run_folder: paths of the run's files.
        num_classes: number of the network's outputs.
    """

    metrics: dict[str, float]
    curve: list[dict[str, float]]
    run_folder: RunFolder
    num_classes: int


class ClassifierRun:
    """All parts of a training run, built from its config without writing anything.

    `resumed` is what the checkpoint to resume from records: the run keeps the names of its outputs and its precision.
    """

    def __init__(
        self,
        cfg: CfgNode,
        group: ProcessGroup,
        run_folder: RunFolder,
        callbacks: Sequence[Callback],
        progress: bool,
        resumed: NetworkRecord | None = None,
    ) -> None:
        # What the config leaves empty comes from the weights to start from
        cfg, self.arch, record = start_from_weights(cfg)
        self.device = select_device(cfg.DEVICE, group)
        self.cfg = cfg = with_precision(cfg, self.device, resumed.config if resumed else {})
        self.group = group
        self.run_folder = run_folder
        self.progress = progress
        syncs = synchronizes_batchnorm(cfg, group)
        check_trackers(cfg.LOG.TRACKERS)

        # Data and network
        classes = resumed.classes if resumed else ()  # default: those of the training images
        self.inputs = build_inputs(cfg, self.arch, self.device, group, classes)
        self.classes = self.inputs.train.classes
        model = build_model(cfg, self.arch, self.classes, self.device, cfg.MODEL.WEIGHTS, record=record)
        self.num_classes = cast("int", model.num_classes)
        self.objective = self._build_objective()
        if cfg.SOLVER.FIT_MEMORY:
            self._fit_memory(cfg, model)
        # From here on, the config has the values that fit dataset and memory
        self.fitted_values = describe_fitted(cfg, self.inputs.cfg)
        self.cfg = cfg = self.inputs.cfg
        self.model = sync_batchnorm(model, self.device) if syncs else model
        # After the norms have been replaced, and before anything collects the parameters
        self.frozen = freeze(self.model, cfg.MODEL.FREEZE, norms=cfg.MODEL.FREEZE_NORM)
        self.frozen += quantize_for_training(cfg, self.model)
        self.ema = ModelEMA(self.model, cfg.EMA.DECAY) if cfg.EMA.ENABLED else None
        # All ranks start from the same weights, but draw their own dropout, drop path and mixup
        if group.rank:
            seed_device(derive_seed(cfg.SEED, group.rank), self.device)

        # State of the run
        self.corrupt_images = CorruptImageCounter(cfg.DATA.MAX_CORRUPT)
        self.metadata = self._describe()
        self.curve = LearningCurveHook(callbacks)
        self.trainer = self._build_trainer()

    def _build_objective(self) -> Objective:
        cfg, inputs = self.inputs.cfg, self.inputs
        weights = class_weights_from_config(cfg, inputs.train)
        return build_objective(cfg, self.classes, inputs.preprocessing.resolution, self.device, weights)

    def _fit_memory(self, cfg: CfgNode, model: nn.Module) -> None:
        """Reduce the batch size until it fits in memory, and rebuild the inputs with it."""
        fitted = self.inputs.cfg
        batch_size = find_batch_size(fitted, model, self.objective, self.inputs, self.device, self.group)
        if batch_size == fitted.SOLVER.BATCH_SIZE:
            return
        # The number of epochs may depend on the batch size
        reduced = cfg.clone()
        reduced.defrost()
        reduced.SOLVER.BATCH_SIZE = batch_size
        reduced.freeze()
        self.inputs = build_inputs(reduced, self.arch, self.device, self.group, self.classes)

    def _describe(self) -> dict[str, Any]:
        """Return what checkpoints record about the run: its network, data, config and versions."""
        data = {"train": data_fingerprint(self.inputs.train), "val": data_fingerprint(self.inputs.val)}
        record = NetworkRecord(
            self.arch,
            self.cfg.MODEL.IN_CHANS,
            tuple(self.classes),
            self.inputs.preprocessing,
            flatten(self.cfg),
            is_multi_label(self.inputs.train),
            data,
        )
        # Compare the teacher by its content, and whether there is a cache: their paths do not matter
        fingerprint = config_fingerprint(self.cfg, CLASSIFIER_IGNORED_KEYS)
        fingerprint["DISTILL.ARCH"] = teacher_fingerprint(self.cfg)
        fingerprint["DISTILL.CACHE"] = bool(self.cfg.DISTILL.CACHE)
        return {
            **record.to_metadata(),
            "steps_per_epoch": len(self.inputs.train_loader),
            "config": fingerprint,
            "versions": package_versions(),
        }

    def _build_trainer(self) -> Trainer:
        cfg = self.cfg
        return Trainer(
            self.model,
            self.objective,
            optimizer_from_config(cfg, self.model),
            schedule_from_config(cfg),
            self.inputs.train_loader,
            lr=base_lr(cfg),
            epochs=cfg.SOLVER.EPOCHS,
            device=self.device,
            channels_last=cfg.MODEL.CHANNELS_LAST,
            mixup=build_mixup(cfg, self.num_classes),
            ema=self.ema,
            precision=autocast_dtype(cfg.SOLVER.PRECISION, self.device),
            accumulate=cfg.SOLVER.ACCUMULATE,
            frozen=self.frozen,
            corrupt_images=self.corrupt_images,
            group=self.group,
            hooks=self._build_hooks(),
        )

    def _build_hooks(self) -> list[Hook]:
        """Build the hooks in the order in which they depend on each other's results."""
        cfg = self.cfg
        # Not a method of this class: a reference cycle would let the loader's workers outlive the run
        recorder, reports = build_report_hooks(
            cfg.EVAL.REPORT, self.run_folder, self.inputs, self.group.is_rank_0
        )
        evaluate_models = partial(
            evaluate_with_tta,
            views=cfg.EVAL.TTA,
            multi_label=is_multi_label(self.inputs.val),
            resolution=self.inputs.preprocessing.resolution,
            batches=self.inputs.val_loader,
            device=self.device,
            precision=autocast_dtype(cfg.SOLVER.PRECISION, self.device),
            channels_last=cfg.MODEL.CHANNELS_LAST,
            corrupt_images=self.corrupt_images,
            progress=self.progress,
            group=self.group,
            recorder=recorder,
        )
        evaluate_models = explain_out_of_memory(self.device, "lower EVAL.BATCH_SIZE")(evaluate_models)
        quantization = [ObserverHook(cfg.QAT.OBSERVE)] if cfg.QAT.ENABLED else []
        hooks: list[Hook] = [*quantization, EvaluationHook(evaluate_models, cfg.EVAL.PERIOD)]
        results: list[Hook] = []
        if self.group.is_rank_0:
            config = flatten(cfg)
            hooks.append(MetricsHook(self.run_folder, cfg.LOG.PERIOD, cfg.LOG.TRACKERS, config))
            resolution = self.inputs.preprocessing.resolution
            describe = partial(describe_run, cfg, self.arch, self.model, self.num_classes, resolution)
            results.append(ResultHook(self.run_folder, self.curve, describe, cfg.LOG.RESULTS))
        checkpointing = CheckpointHook(
            self.run_folder,
            keep=cfg.CHECKPOINT.KEEP,
            epoch_period=cfg.CHECKPOINT.PERIOD,
            step_period=cfg.CHECKPOINT.STEPS,
            metadata=self.metadata,
        )
        early_stopping = (
            [EarlyStoppingHook(self.curve.results, cfg.SOLVER.PATIENCE)] if cfg.SOLVER.PATIENCE else []
        )
        return [
            *hooks,
            ProgressHook(self.progress),
            self.curve,
            *early_stopping,
            checkpointing,
            DivergenceHook(self.run_folder),
            *reports,
            *results,
        ]

    def resume_from(self, path: Path, state: State) -> None:
        """Restore a checkpoint and the learning curve up to it."""
        results = self.group.broadcast(read_learning_curve(self.run_folder.metrics))
        try:
            # Compare network and data first, then the config keys
            saved = {**state["metadata"], **with_defaults(state["metadata"]["config"])}
            current = {key: self.metadata[key] for key in _SAME_RUN} | self.metadata["config"]
            check_same_run(saved, current, path, long_values=("definition",))
            self._warn_if_data_changed(state["metadata"])
            check_length(state["epoch"], self.cfg.SOLVER.EPOCHS, "epochs", "SOLVER.EPOCHS", path)
            # Restore model, optimizer and random state, then the evaluations up to the checkpoint
            self.trainer.load_state_dict(state)
            set_ranges(self.model, state["metadata"].get("ranges", {}))
            self.curve.results[:] = [result for result in results if result["epoch"] <= state["epoch"]]
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            problem = f"cannot resume from {path}: {describe_error(error)}"
            raise WeightsError(f"{problem}; delete it or choose a different OUTPUT_DIR") from None

    def run(self) -> RunResult:
        """Train to the end. Files are written from here on."""
        if self.group.is_rank_0:
            self.run_folder.prepare(self.cfg)
        with log_to_file(self.run_folder.log) if self.group.is_rank_0 else contextlib.nullcontext():
            progress = self.trainer.progress
            self._log_summary()
            if progress.step:
                epochs = "1 epoch" if progress.epoch == 1 else f"{progress.epoch} epochs"
                logger.info("resuming after %d steps (%s)", progress.step, epochs)
                self._warn_if_lr_changes()
            if progress.epoch < self.trainer.epochs and self.group.is_rank_0:
                self.run_folder.weights.unlink(missing_ok=True)  # of a shorter run that is being extended
            # Compile in place, so that the names in state dicts stay the same
            if self.cfg.MODEL.COMPILE:
                self.model.compile()
            metrics = self.trainer.run()
        results = {key.removeprefix("val_"): value for key, value in metrics.items()}
        return RunResult(results, self.curve.results, self.run_folder, self.num_classes)

    def _warn_if_data_changed(self, metadata: dict[str, Any]) -> None:
        """Warn if the images of a split are not those with which the run started."""
        for split, saved in metadata.get("data", {}).items():
            current = self.metadata["data"][split]
            if change := describe_change(saved, current):
                logger.warning(
                    "the %s images, or their classes, are not those of the checkpoint: %d in %s; %s",
                    split,
                    current["images"],
                    self.cfg.DATA.ROOT or self.cfg.DATA.NAME,
                    change,
                )

    def _warn_if_lr_changes(self) -> None:
        """Warn if SOLVER.EPOCHS, which may be raised, has changed the learning rate at which a run resumes."""
        last_lr = self.trainer.current_lr
        lr = self.trainer.scheduled_lr(self.trainer.progress.step - 1)
        if not math.isclose(lr, last_lr, rel_tol=1e-6):
            logger.warning(
                "the learning rate changes from %.3g to %.3g: it depends on SOLVER.EPOCHS", last_lr, lr
            )

    def _log_summary(self) -> None:
        cfg = self.cfg
        inputs = self.inputs
        images = f"{len(inputs.train)} training images, {len(inputs.val)} validation images"
        epochs = "1 epoch" if cfg.SOLVER.EPOCHS == 1 else f"{cfg.SOLVER.EPOCHS} epochs"
        details = [f"input {inputs.preprocessing.resolution} px", images, epochs]
        details += [cfg.SOLVER.PRECISION] if cfg.SOLVER.PRECISION != "float32" else []
        log_summary(self.arch.name, self.model, cfg.DATA.NAME, details, self.device, self.group)
        if self.fitted_values:
            memory = " and the GPU's memory" if cfg.SOLVER.FIT_MEMORY else ""
            logger.info("for %d training images%s: %s", len(inputs.train), memory, self.fitted_values)
        self._log_fine_tuning()
        if self.group.size > 1:
            syncs = synchronizes_batchnorm(cfg, self.group)
            norm = "synchronized BatchNorm" if syncs else "BatchNorm in each process"
            logger.info("%d images per process and step, %s", inputs.train_loader.batch_size, norm)
        if cfg.DISTILL.ARCH:
            source = f", logits cached in {cfg.DISTILL.CACHE}" if cfg.DISTILL.CACHE else ""
            logger.info(
                "distilled from %s with weights %s%s", cfg.DISTILL.ARCH, cfg.DISTILL.WEIGHTS, source
            )

    def _log_fine_tuning(self) -> None:
        """Log what is frozen, and the class weights."""
        counts = [parameter.numel() for parameter in self.model.parameters()]
        trained = [parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad]
        if len(trained) < len(counts):
            key = f"MODEL.FREEZE {self.cfg.MODEL.FREEZE}"
            norms = ", MODEL.FREEZE_NORM" if self.cfg.MODEL.FREEZE_NORM else ""
            logger.info("%s%s: %d of %d parameters are trained", key, norms, sum(trained), sum(counts))
        weights = class_weights_from_config(self.cfg, self.inputs.train)
        if weights is not None:
            named = zip(self.inputs.train.classes, weights.tolist(), strict=True)
            logger.info("class weights: %s", first_few([f"{name} {weight:.3g}" for name, weight in named]))
