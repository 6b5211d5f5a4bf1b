"""What happens around the training loop: progress, evaluation, checkpoints, metrics and the curve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fbnetv3.training.run_state.checkpoints import Checkpoints, save
from fbnetv3.training.run_state.metrics import append_metrics, plot_curve, truncate_metrics
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.utils.text import format_duration

logger = logging.getLogger(__name__)

# Takes the results of an epoch; False stops the run.
Callback = Callable[[dict[str, float]], bool | None]


class Evaluation(Hook):
    """Evaluates every `period` epochs and after the last; the results go to the progress's metrics."""

    def __init__(self, evaluate: Callable[[], dict[str, float]], period: int = 1) -> None:
        self.evaluate, self.period = evaluate, period

    def after_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.progress.epoch
        if epoch % self.period == 0 or epoch == trainer.epochs:
            trainer.progress.metrics = {f"val_{key}": value for key, value in self.evaluate().items()}


class Checkpointing(Hook):
    """Saves the run every so often, after the last epoch and when it is interrupted; and the weights alone.

    Args:
        checkpoints: where to.
        epochs: epochs between two.
        steps: steps between two, besides; 0 for none.
        final: path of the weights when the run is complete.
        best: path of the weights with the best top-1 so far (of the average, where there is one).
        about: what goes into all of these beside the weights, such as the architecture's name.

    Of several processes, the main one writes.
    """

    def __init__(
        self, checkpoints: Checkpoints, epochs: int, steps: int, final: Path, best: Path, about: dict[str, Any]
    ) -> None:
        self.checkpoints, self.epochs, self.steps = checkpoints, epochs, steps
        self.final, self.best, self.about = final, best, about

    def after_step(self, trainer: Trainer) -> None:
        if self.steps and trainer.progress.step % self.steps == 0:
            self._save(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        progress = trainer.progress
        top1 = progress.metrics.get("val_ema_top1", progress.metrics.get("val_top1", -1.0))
        if top1 > progress.best:
            if trainer.world.is_main:
                save(self.best, {**self._weights(trainer), "metrics": progress.metrics})
            progress.best = top1
        if progress.epoch % self.epochs == 0 or progress.epoch == trainer.epochs or trainer.stopped:
            self._save(trainer)

    def on_interrupt(self, trainer: Trainer) -> None:
        self._save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if trainer.progress.epoch == trainer.epochs and trainer.world.is_main:
            save(self.final, self._weights(trainer))

    def _save(self, trainer: Trainer) -> None:
        trainer.check_loss()  # what has diverged must not take the place of what has not
        state = trainer.state_dict()
        if trainer.world.is_main:
            self.checkpoints.save(trainer.progress.step, {**state, "about": self.about})

    def _weights(self, trainer: Trainer) -> dict[str, Any]:
        weights = {"model": trainer.model.state_dict(), **self.about}
        if trainer.ema is not None:
            weights["model_ema"] = trainer.ema.module.state_dict()
        return weights


class Autopsy(Hook):
    """Leaves what is needed to look at a loss that is not finite: the batch (before mixup), its names, the weights.

    On a CPU these are the weights that gave the loss, on a GPU those after the step.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_divergence(self, trainer: Trainer) -> None:
        step, batch = trainer.last_batch
        if not trainer.world.is_main:
            return
        assert batch is not None  # a step has gone before
        about = {"step": step, "lr": trainer.current_lr, "loss": trainer.loss.item()}
        images = {"images": batch.images, "targets": batch.targets, "names": batch.names}
        save(self.file, {**about, **images, "model": trainer.model.state_dict()})
        logger.info("the batch and the weights of that step lie in %s", self.file)


class Curve(Hook):
    """Gathers the evaluations of a run, and shows each to callbacks; one that answers False stops the run.

    Args:
        callbacks: called with the results of an epoch, "epoch" among them.
        results: of the epochs before this part of the run.
    """

    def __init__(self, callbacks: Sequence[Callback], results: Sequence[dict[str, float]] = ()) -> None:
        self.callbacks, self.results = callbacks, list(results)

    def after_epoch(self, trainer: Trainer) -> None:
        progress = trainer.progress
        if not progress.metrics:
            return
        result = {key.removeprefix("val_"): value for key, value in progress.metrics.items()}
        self.results.append({"epoch": progress.epoch, **result})
        for callback in self.callbacks:
            if callback(self.results[-1]) is False:
                trainer.stopped = True
        trainer.stopped = trainer.world.any(trainer.stopped)  # before another hook acts on it


class Metrics(Hook):
    """Writes the metrics file (a JSON object a line), TensorBoard events and the curve.

    Entries have "step", "epoch", "loss", "lr" while training, and "epoch" with "val_…" after an evaluation.
    """

    def __init__(self, file: Path, curve: Path, tensorboard: Path, period: int) -> None:
        self.file, self.curve, self.tensorboard, self.period = file, curve, tensorboard, period
        self.board: Any = None

    def before_train(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        truncate_metrics(self.file, trainer.progress.step, trainer.progress.epoch)
        self.board = SummaryWriter(str(self.tensorboard), purge_step=trainer.progress.step + 1)

    def after_step(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if step % self.period == 0 or step % len(trainer.loader) == 0:
            epoch = step / len(trainer.loader)
            self._write({"step": step, "epoch": epoch, "loss": trainer.loss.item(), "lr": trainer.current_lr})

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.progress.metrics:
            progress = trainer.progress
            self._write({"step": progress.step, "epoch": progress.epoch, **progress.metrics})
            plot_curve(self.file, self.curve)

    def _write(self, entry: dict[str, float]) -> None:
        append_metrics(self.file, entry)
        for key, value in entry.items():
            if key not in ("step", "epoch"):
                self.board.add_scalar(key, value, entry["step"])

    def close(self, trainer: Trainer) -> None:
        if self.board is not None:
            self.board.close()


class ProgressBar(Hook):
    """A bar for each epoch on a terminal, and a line for each epoch in the log, with the time that is left.

    Args:
        shown: whether to show the bar.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.bar: tqdm | None = None

    def before_train(self, trainer: Trainer) -> None:
        self.start, self.first = time.monotonic(), trainer.progress.step

    def before_epoch(self, trainer: Trainer) -> None:
        epoch = f"epoch {trainer.progress.epoch + 1}/{trainer.epochs}"
        done = trainer.progress.step - trainer.progress.epoch * len(trainer.loader)
        self.bar = tqdm(
            total=len(trainer.loader),
            initial=done,
            desc=epoch,
            unit="step",
            leave=False,
            disable=None if self.shown else True,
        )

    def after_step(self, trainer: Trainer) -> None:
        assert self.bar is not None  # of `before_epoch`
        if not self.bar.disable and (self.bar.n % 10 == 0):
            self.bar.set_postfix_str(
                f"loss {trainer.loss.item():.3f}, lr {trainer.current_lr:.3g}, run ends in {self._left(trainer)}",
                refresh=False,
            )
        self.bar.update()
        if self.bar.n == self.bar.total:
            self.bar.close()

    def after_epoch(self, trainer: Trainer) -> None:
        progress = trainer.progress
        shown = {"top1": "top1", "top5": "top5", "ema_top1": "EMA's top1", "ema_top5": "EMA's top5"}
        results = "".join(
            f", {words} {progress.metrics['val_' + name]:.2f} %"
            for name, words in shown.items()
            if "val_" + name in progress.metrics
        )
        logger.info(
            "epoch %d/%d: loss %.4f, lr %.3g%s; %s gone, %s left",
            progress.epoch,
            trainer.epochs,
            trainer.loss.item(),
            trainer.current_lr,
            results,
            format_duration(time.monotonic() - self.start),
            self._left(trainer),
        )

    def close(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.bar.close()

    def _left(self, trainer: Trainer) -> str:
        """Time to the end of the run at the pace so far, evaluations included."""
        done = trainer.progress.step - self.first
        return format_duration(
            (time.monotonic() - self.start) / max(1, done) * (trainer.total_steps - trainer.progress.step)
        )
