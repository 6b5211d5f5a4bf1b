"""Hooks of classifier training: evaluation, checkpoints, metrics, progress, learning curve, dump on divergence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tqdm import tqdm

from fbnetv3.modeling.qat.quantized_layers import read_ranges
from fbnetv3.training.devices.delayed_losses import StepLoss
from fbnetv3.training.run_state.checkpoints import Checkpoints, save_checkpoint
from fbnetv3.training.run_state.metrics import plot_curve, selection_accuracy, truncate_metrics
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.tracking.trackers import RunTrackers
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.utils.json_lines import append_json_line
from fbnetv3.utils.text import format_duration

logger = logging.getLogger(__name__)

Callback = Callable[[dict[str, float]], bool | None]
"""Takes the results of an epoch; returns False to end the run."""

# Seconds between drawings of the curve, which may take as long as a short epoch
_DRAWING_PERIOD = 30.0

_LABELS = {"top1": "top1", "top5": "top5", "map": "mAP", "f1": "F1"}
ACCURACY_LABELS = _LABELS | {f"ema_{key}": f"EMA {label}" for key, label in _LABELS.items()}
"""Keys of accuracies in metrics, with their labels in log lines."""


@dataclass
class EvaluationHook(Hook):
    """Evaluates every `period` epochs and after the last one, and sets the metrics in `trainer.progress`.

    The prefix is "val_" for the raw weights and "val_ema_" for the averaged ones. Both are evaluated together, so that
    images are read only once.
    """

    evaluate: Callable[[Sequence[nn.Module]], list[dict[str, float]]]
    period: int = 1

    def after_epoch(self, trainer: Trainer) -> None:
        """Evaluate if an evaluation is due."""
        progress = trainer.progress
        if progress.epoch % self.period and progress.epoch != trainer.epochs:
            return
        averaged_model = trainer.ema and trainer.ema.module
        # BatchNorm statistics differ between processes: all evaluate those of rank 0
        trainer.group.broadcast_buffers(trainer.model, averaged_model)
        models = [trainer.model] if averaged_model is None else [trainer.model, averaged_model]
        results, *averaged = self.evaluate(models)
        for averaged_results in averaged:
            results |= {f"ema_{key}": value for key, value in averaged_results.items() if key != "images"}
        progress.metrics = {f"val_{key}": value for key, value in results.items()}


@dataclass
class CheckpointHook(Hook):
    """Writes checkpoints periodically, after the last epoch and on an interrupt, and the best and final weights."""

    run_folder: RunFolder
    metadata: dict[str, Any]  # saved with the weights
    keep: int = 3
    epoch_period: int = 1  # epochs between two checkpoints
    step_period: int = 0  # steps between two additional checkpoints; 0 for none

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints that this hook writes."""
        return Checkpoints(self.run_folder.checkpoints, self.keep)

    def after_step(self, trainer: Trainer) -> None:
        """Write a checkpoint if one is due."""
        if self.step_period and trainer.progress.step % self.step_period == 0:
            self._save(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the best weights, and a checkpoint if one is due."""
        progress = trainer.progress
        top1 = selection_accuracy(progress.metrics, "val_")
        if top1 > progress.best_top1:
            progress.best_top1 = top1
            if trainer.group.is_rank_0:
                save_checkpoint(self.run_folder.best, self._weights(trainer))
        is_last = progress.epoch == trainer.epochs or trainer.stopped
        if is_last or progress.epoch % self.epoch_period == 0:
            self._save(trainer)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Write a checkpoint."""
        self._save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Write the final weights."""
        is_complete = trainer.complete or trainer.progress.epoch == trainer.epochs
        if is_complete and trainer.group.is_rank_0:
            save_checkpoint(self.run_folder.weights, self._weights(trainer))

    def _save(self, trainer: Trainer) -> None:
        trainer.check_loss()  # diverged weights must not replace good ones
        state = trainer.state_dict()
        if trainer.group.is_rank_0:
            self.checkpoints.save(trainer.progress.step, {**state, "metadata": self._describe(trainer)})

    def _weights(self, trainer: Trainer) -> dict[str, Any]:
        weights = {
            "model": trainer.model.state_dict(),
            "metrics": trainer.progress.metrics,
            **self._describe(trainer),
        }
        if trainer.ema is not None:
            weights["model_ema"] = trainer.ema.module.state_dict()
        return weights

    def _describe(self, trainer: Trainer) -> dict[str, Any]:
        """Return the metadata, with the ranges that quantization-aware training has observed."""
        ranges = read_ranges(trainer.model)
        return {**self.metadata, "ranges": ranges} if ranges else self.metadata


@dataclass
class DivergenceHook(Hook):
    """Saves the batch (before mixup), its image names and the weights when the loss is not finite.

    On a CPU, and with fused optimizers (sgd and adamw on a GPU), these are the weights that gave the loss; with others,
    those some steps later.
    """

    run_folder: RunFolder

    def on_divergence(self, trainer: Trainer) -> None:
        """Save the batch and the weights."""
        diverged = trainer.diverged
        if not trainer.group.is_rank_0 or diverged is None:
            return
        batch = diverged.batch
        dump = {
            "step": diverged.step,
            "lr": diverged.lr,
            "loss": diverged.loss,
            "images": batch.images.cpu(),
            "targets": batch.targets.cpu(),
            "names": batch.names,
            "model": trainer.model.state_dict(),
        }
        save_checkpoint(self.run_folder.diverged, dump)
        logger.info(
            "the batch and weights of step %d are saved in %s", diverged.step, self.run_folder.diverged
        )


@dataclass
class LearningCurveHook(Hook):
    """Collects the evaluations of a run and passes each to callbacks; one that returns False ends the run."""

    callbacks: Sequence[Callback]
    # A resumed run starts with the earlier evaluations
    results: list[dict[str, float]] = field(default_factory=list)

    def after_epoch(self, trainer: Trainer) -> None:
        """Add the epoch's results and call the callbacks."""
        progress = trainer.progress
        if not progress.metrics:
            return
        result = {key.removeprefix("val_"): value for key, value in progress.metrics.items()}
        self.results.append({"epoch": progress.epoch, **result})
        for callback in self.callbacks:
            if callback(self.results[-1]) is False:
                trainer.stopped = True
        trainer.stopped = trainer.group.any(trainer.stopped)  # before another hook reads it


@dataclass
class MetricsHook(Hook):
    """Writes the metrics file (JSON lines) and the figure of the learning curve, and passes entries to trackers.

    Entries have "step" and "epoch". Every `period` steps and at the end of an epoch they also have "loss" and "lr",
    after an evaluation "val_...". Short epochs share a drawing of the figure.
    """

    run_folder: RunFolder
    period: int
    tracker_names: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)  # for the trackers
    trackers: RunTrackers | None = field(init=False, default=None)
    is_drawn: bool = field(init=False, default=True)  # all evaluations are in the figure
    drawing_time: float = field(init=False, default=-math.inf)

    def before_train(self, trainer: Trainer) -> None:
        """Drop entries after the checkpoint from which the run resumes."""
        progress = trainer.progress
        truncate_metrics(self.run_folder.metrics, progress.step, progress.epoch)
        self.trackers = RunTrackers(self.tracker_names, self.run_folder.path, self.config, progress.step)

    def after_loss(self, trainer: Trainer, loss: StepLoss) -> None:
        """Write loss and learning rate."""
        step = loss.step
        if step % self.period == 0 or step % len(trainer.loader) == 0:  # each epoch's end is in the curve
            epoch = step / len(trainer.loader)
            self._write({"step": step, "epoch": epoch, "loss": loss.loss, "lr": loss.lr})

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the evaluation, and draw the curve unless that was done a moment ago."""
        progress = trainer.progress
        if progress.metrics:
            self._write({"step": progress.step, "epoch": progress.epoch, **progress.metrics})
            self.is_drawn = False
            if time.monotonic() - self.drawing_time > _DRAWING_PERIOD:
                self._draw()

    def after_train(self, trainer: Trainer) -> None:
        """Draw the curve."""
        self._draw()

    def on_interrupt(self, trainer: Trainer) -> None:
        """Draw the curve."""
        self._draw()

    def on_divergence(self, trainer: Trainer) -> None:
        """Draw the curve."""
        self._draw()

    def _draw(self) -> None:
        """Draw the evaluations that the figure does not have."""
        if not self.is_drawn:
            plot_curve(self.run_folder.metrics, self.run_folder.curve)
            self.is_drawn = True
            self.drawing_time = time.monotonic()

    def _write(self, entry: dict[str, float]) -> None:
        append_json_line(self.run_folder.metrics, entry)
        if self.trackers is not None:
            values = {key: value for key, value in entry.items() if key not in ("step", "epoch")}
            self.trackers.log(values, int(entry["step"]))

    def close(self, trainer: Trainer) -> None:
        """Close the trackers."""
        if self.trackers is not None:
            self.trackers.close()


@dataclass
class ProgressHook(Hook):
    """Shows a progress bar on a terminal if `enabled`, and always logs each epoch's results and the remaining time."""

    enabled: bool
    bar: tqdm = field(init=False, default_factory=lambda: tqdm(disable=True))
    start_time: float = field(init=False, default=0.0)
    start_step: int = field(init=False, default=0)
    last_loss: float | None = field(init=False, default=None)

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock."""
        self.start_time = time.monotonic()
        self.start_step = trainer.progress.step

    def before_epoch(self, trainer: Trainer) -> None:
        """Show a new bar."""
        self.bar = tqdm(
            total=len(trainer.loader),
            initial=trainer.progress.step - trainer.progress.epoch * len(trainer.loader),
            desc=f"epoch {trainer.progress.epoch + 1}/{trainer.epochs}",
            unit="step",
            leave=False,
            disable=None if self.enabled else True,
        )

    def after_loss(self, trainer: Trainer, loss: StepLoss) -> None:
        """Keep the loss, which `trainer.loss` would wait for on a GPU."""
        self.last_loss = loss.loss

    def after_step(self, trainer: Trainer) -> None:
        """Advance the bar."""
        if not self.bar.disable and self.bar.n % 10 == 0 and self.last_loss is not None:
            text = f"loss {self.last_loss:.3f}, lr {trainer.current_lr:.3g}"
            self.bar.set_postfix_str(f"{text}, {self._remaining(trainer)} left in run", refresh=False)
        self.bar.update()
        if self.bar.n == self.bar.total:
            self.bar.close()

    def after_epoch(self, trainer: Trainer) -> None:
        """Log the results."""
        progress = trainer.progress
        parts = [f"lr {trainer.current_lr:.3g}"]
        if self.last_loss is not None:  # a resumed run may begin at the end of an epoch
            parts.insert(0, f"last batch's loss {self.last_loss:.4f}")
        for key, label in ACCURACY_LABELS.items():
            if f"val_{key}" in progress.metrics:
                parts.append(f"{label} {progress.metrics[f'val_{key}']:.2f}%")
        elapsed = format_duration(time.monotonic() - self.start_time)
        times = f"{elapsed} elapsed, {self._remaining(trainer)} left"
        logger.info("epoch %d/%d: %s; %s", progress.epoch, trainer.epochs, ", ".join(parts), times)

    def close(self, trainer: Trainer) -> None:
        """Remove the bar."""
        self.bar.close()

    def _remaining(self, trainer: Trainer) -> str:
        """Estimate the time to the end of the run from the time per step so far, evaluations included."""
        steps_done = trainer.progress.step - self.start_step
        time_per_step = (time.monotonic() - self.start_time) / max(1, steps_done)
        return format_duration(time_per_step * (trainer.total_steps - trainer.progress.step))
