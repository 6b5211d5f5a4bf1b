"""What happens around the training loop: progress, evaluation, checkpoints, metrics and the curve."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fbnetv3.engine.checkpoint import Checkpoints, save
from fbnetv3.engine.curve import plot_curve
from fbnetv3.engine.trainer import Hook, Trainer

logger = logging.getLogger(__name__)


class Evaluation(Hook):
    """Evaluates every `period` epochs and after the last; the results go to the progress's metrics."""

    def __init__(self, evaluate: Callable[[], dict[str, float]], period: int = 1) -> None:
        self.evaluate, self.period = evaluate, period

    def after_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.progress.epoch
        if epoch % self.period == 0 or epoch == trainer.epochs:
            trainer.progress.metrics = {f"val_{key}": value for key, value in self.evaluate().items()}


class Checkpointing(Hook):
    """Saves the run every `period` epochs and after the last, and in the end the weights alone.

    Args:
        checkpoints: where to.
        period: epochs between two.
        final: path of the weights-only file that is written when the run is complete.
        about: what goes into that file beside the weights, such as the architecture's name.
    """

    def __init__(self, checkpoints: Checkpoints, period: int, final: Path, about: dict[str, Any]) -> None:
        self.checkpoints, self.period, self.final, self.about = checkpoints, period, final, about

    def after_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.progress.epoch
        if epoch % self.period == 0 or epoch == trainer.epochs:
            self.checkpoints.save(epoch, trainer.state_dict())

    def after_train(self, trainer: Trainer) -> None:
        save(self.final, {"model": trainer.model.state_dict(), **self.about})


class Metrics(Hook):
    """Writes `metrics.jsonl` (a JSON object a line), TensorBoard events and `curve.png`; checks the loss.

    Entries have "step", "epoch", "loss", "lr" while training, and "epoch" with "val_…" after an evaluation.
    """

    def __init__(self, folder: Path, period: int) -> None:
        self.folder, self.period = folder, period
        self.file = folder / "metrics.jsonl"
        self.board: Any = None

    def before_train(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._forget_after(trainer.progress.step)
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=trainer.progress.step)

    def _forget_after(self, step: int) -> None:
        """Drop entries that lie ahead of the checkpoint from which the run goes on."""
        if self.file.exists():
            kept = [entry for entry in read_metrics(self.file) if entry["step"] <= step]
            self.file.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def after_step(self, trainer: Trainer) -> None:
        step = trainer.progress.step
        if step % self.period == 0 or step % len(trainer.loader) == 0:
            epoch = step / len(trainer.loader)
            self._write({"step": step, "epoch": epoch, "loss": trainer.check_loss(), "lr": trainer.current_lr})

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.progress.metrics:
            progress = trainer.progress
            self._write({"step": progress.step, "epoch": progress.epoch, **progress.metrics})
            plot_curve(self.file, self.folder / "curve.png")

    def _write(self, entry: dict[str, float]) -> None:
        with self.file.open("a") as f:
            f.write(json.dumps(entry) + "\n")
        for key, value in entry.items():
            if key not in ("step", "epoch"):
                self.board.add_scalar(key, value, entry["step"])

    def after_train(self, trainer: Trainer) -> None:
        self.board.close()


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The entries of a metrics file; a last line cut short by a killed run is left out."""
    entries = []
    for line in file.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class ProgressBar(Hook):
    """A bar for each epoch on a terminal, and a line for each epoch in the log, with the time that is left."""

    def before_train(self, trainer: Trainer) -> None:
        self.start, self.first = time.monotonic(), trainer.progress.epoch

    def before_epoch(self, trainer: Trainer) -> None:
        epoch = f"epoch {trainer.progress.epoch + 1}/{trainer.epochs}"
        self.bar = tqdm(total=len(trainer.loader), desc=epoch, unit="step", leave=False, disable=None)

    def after_step(self, trainer: Trainer) -> None:
        if not self.bar.disable and (self.bar.n % 10 == 0):
            self.bar.set_postfix_str(f"loss {trainer.loss.item():.3f}, lr {trainer.current_lr:.3g}", refresh=False)
        self.bar.update()
        if self.bar.n == self.bar.total:
            self.bar.close()

    def after_epoch(self, trainer: Trainer) -> None:
        progress = trainer.progress
        elapsed = time.monotonic() - self.start
        left = elapsed / (progress.epoch - self.first) * (trainer.epochs - progress.epoch)
        results = "".join(
            f", {name} {progress.metrics['val_' + name]:.2f} %"
            for name in ("top1", "top5")
            if "val_" + name in progress.metrics
        )
        logger.info(
            "epoch %d/%d: loss %.4f, lr %.3g%s; %s gone, %s left",
            progress.epoch,
            trainer.epochs,
            trainer.check_loss(),
            trainer.current_lr,
            results,
            _duration(elapsed),
            _duration(left),
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
