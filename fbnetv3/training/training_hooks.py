"""Hooks of classifier training: evaluation, checkpoints, metrics, progress, learning curve, dump on divergence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from fbnetv3.training.run_state.checkpoints import Checkpoints, save_checkpoint
from fbnetv3.training.run_state.metrics import plot_curve, truncate_metrics
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.utils.json_lines import append_json_line
from fbnetv3.utils.text import format_duration

logger = logging.getLogger(__name__)

Callback = Callable[[dict[str, float]], bool | None]
"""Takes the results of an epoch; returns False to end the run."""

ACCURACY_LABELS = {"top1": "top1", "top5": "top5", "ema_top1": "EMA top1", "ema_top5": "EMA top5"}
"""Keys of accuracies in metrics, with their labels in log lines."""


class Evaluation(Hook):
    """Evaluates every `period` epochs and after the last one, and sets the metrics in `trainer.progress`."""

    def __init__(self, evaluate: Callable[[], dict[str, float]], period: int = 1) -> None:
        self.evaluate = evaluate
        self.period = period

    def after_epoch(self, trainer: Trainer) -> None:
        """Evaluate if an evaluation is due."""
        epoch = trainer.progress.epoch
        if epoch % self.period == 0 or epoch == trainer.epochs:
            trainer.progress.metrics = {f"val_{key}": value for key, value in self.evaluate().items()}


class Checkpointing(Hook):
    """Writes checkpoints, periodically, after the last epoch and on an interrupt, and the best and final weights.

    Args:
        run_folder: output folder.
        keep: number of checkpoints to keep.
        epochs: number of epochs between two checkpoints.
        steps: number of steps between two additional checkpoints; 0 for none.
        metadata: values to save with the weights, such as the architecture's name.
    """

    def __init__(
        self, run_folder: RunFolder, *, keep: int = 3, epochs: int = 1, steps: int = 0, metadata: dict[str, Any]
    ) -> None:
        self.run_folder = run_folder
        self.checkpoints = Checkpoints(run_folder.checkpoints, keep)
        self.epochs = epochs
        self.steps = steps
        self.metadata = metadata

    def after_step(self, trainer: Trainer) -> None:
        """Write a checkpoint if one is due."""
        if self.steps and trainer.progress.step % self.steps == 0:
            self._save(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the best weights, and a checkpoint if one is due."""
        progress = trainer.progress
        # Prefer the averaged weights' accuracy if EMA is enabled
        top1 = progress.metrics.get("val_ema_top1", progress.metrics.get("val_top1", -1.0))
        if top1 > progress.best_top1:
            if trainer.group.is_rank_0:
                save_checkpoint(self.run_folder.best, {**self._weights(trainer), "metrics": progress.metrics})
            progress.best_top1 = top1
        if progress.epoch % self.epochs == 0 or progress.epoch == trainer.epochs or trainer.stopped:
            self._save(trainer)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Write a checkpoint."""
        self._save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Write the final weights."""
        if trainer.progress.epoch == trainer.epochs and trainer.group.is_rank_0:
            save_checkpoint(self.run_folder.weights, self._weights(trainer))

    def _save(self, trainer: Trainer) -> None:
        trainer.check_loss()  # diverged weights must not replace good ones
        state = trainer.state_dict()
        if trainer.group.is_rank_0:
            self.checkpoints.save(trainer.progress.step, {**state, "metadata": self.metadata})

    def _weights(self, trainer: Trainer) -> dict[str, Any]:
        weights = {"model": trainer.model.state_dict(), **self.metadata}
        if trainer.ema is not None:
            weights["model_ema"] = trainer.ema.module.state_dict()
        return weights


class DumpOnDivergence(Hook):
    """Saves the batch (before mixup), its image names and the weights when the loss is not finite.

    On a CPU these are the weights that gave the loss; on a GPU, those after the step.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.file = run_folder.diverged

    def on_divergence(self, trainer: Trainer) -> None:
        """Save batch and weights."""
        # All processes exchange the batch; one writes it
        step, batch = trainer.diverged_batch()
        if not trainer.group.is_rank_0:
            return
        dump = {
            "step": step,
            "lr": trainer.current_lr,
            "loss": trainer.loss.item(),
            "images": batch.images,
            "targets": batch.targets,
            "names": batch.names,
            "model": trainer.model.state_dict(),
        }
        save_checkpoint(self.file, dump)
        logger.info("batch and weights of step %d are saved in %s", step, self.file)


class LearningCurve(Hook):
    """Collects the evaluations of a run and passes each to callbacks; one that returns False ends the run.

    Args:
        callbacks: functions to call with the results of an epoch, including "epoch".
    """

    results: list[dict[str, float]]
    """All evaluations; a resumed run sets those before its checkpoint."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        self.results = []

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


class MetricsWriter(Hook):
    """Writes the metrics file (JSON lines), TensorBoard events and the figure of the learning curve.

    Entries have "step", "epoch", "loss" and "lr", or after an evaluation "step", "epoch" and "val_...".

    Args:
        run_folder: output folder.
        period: number of steps between two entries.
    """

    def __init__(self, run_folder: RunFolder, period: int) -> None:
        self.run_folder = run_folder
        self.period = period
        self.tensorboard: Any = None

    def before_train(self, trainer: Trainer) -> None:
        """Drop entries after the checkpoint from which the run resumes."""
        from torch.utils.tensorboard import SummaryWriter

        progress = trainer.progress
        truncate_metrics(self.run_folder.metrics, progress.step, progress.epoch)
        self.tensorboard = SummaryWriter(str(self.run_folder.tensorboard), purge_step=progress.step + 1)

    def after_step(self, trainer: Trainer) -> None:
        """Write loss and learning rate."""
        # Also at the end of each epoch, for the curve
        step = trainer.progress.step
        if step % self.period == 0 or step % len(trainer.loader) == 0:
            epoch = step / len(trainer.loader)
            self._write({"step": step, "epoch": epoch, "loss": trainer.loss.item(), "lr": trainer.current_lr})

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the evaluation and draw the curve."""
        progress = trainer.progress
        if progress.metrics:
            self._write({"step": progress.step, "epoch": progress.epoch, **progress.metrics})
            plot_curve(self.run_folder.metrics, self.run_folder.curve)

    def _write(self, entry: dict[str, float]) -> None:
        append_json_line(self.run_folder.metrics, entry)
        for key, value in entry.items():
            if key not in ("step", "epoch"):
                self.tensorboard.add_scalar(key, value, entry["step"])

    def close(self, trainer: Trainer) -> None:
        """Close TensorBoard's file."""
        if self.tensorboard is not None:
            self.tensorboard.close()


class ProgressBar(Hook):
    """Shows a progress bar for each epoch on a terminal, then logs a line with results and remaining time.

    Args:
        enabled: whether to show the bar.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.bar: tqdm | None = None

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

    def after_step(self, trainer: Trainer) -> None:
        """Advance the bar."""
        assert self.bar is not None  # from `before_epoch`
        # Reading the loss waits for a GPU, so not at every step
        if not self.bar.disable and self.bar.n % 10 == 0:
            text = (
                f"loss {trainer.loss.item():.3f}, lr {trainer.current_lr:.3g}, {self._remaining(trainer)} left in run"
            )
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        if self.bar.n == self.bar.total:
            self.bar.close()

    def after_epoch(self, trainer: Trainer) -> None:
        """Log the results."""
        progress = trainer.progress
        accuracies = "".join(
            f", {label} {progress.metrics['val_' + key]:.2f}%"
            for key, label in ACCURACY_LABELS.items()
            if "val_" + key in progress.metrics
        )
        logger.info(
            "epoch %d/%d: loss %.4f, lr %.3g%s; %s elapsed, %s left",
            progress.epoch,
            trainer.epochs,
            trainer.loss.item(),
            trainer.current_lr,
            accuracies,
            format_duration(time.monotonic() - self.start_time),
            self._remaining(trainer),
        )

    def close(self, trainer: Trainer) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()

    def _remaining(self, trainer: Trainer) -> str:
        """Estimate the time to the end of the run from the time per step so far, evaluations included."""
        steps_done = trainer.progress.step - self.start_step
        time_per_step = (time.monotonic() - self.start_time) / max(1, steps_done)
        return format_duration(time_per_step * (trainer.total_steps - trainer.progress.step))
