"""End a run when its accuracy no longer improves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fbnetv3.training.run_state.metrics import selection_accuracy
from fbnetv3.training.trainer import Hook, Trainer

logger = logging.getLogger(__name__)


def find_best(curve: Sequence[Mapping[str, float]]) -> int:
    """Return the position of the first evaluation with the best accuracy in a learning curve that is not empty."""
    accuracies = [selection_accuracy(result) for result in curve]
    return accuracies.index(max(accuracies))


@dataclass
class EarlyStoppingHook(Hook):
    """Ends a run after `patience` evaluations without improvement, as a complete one.

    `curve` is the learning curve, which another hook extends before this one is called; a resumed run has the earlier
    evaluations in it.
    """

    curve: Sequence[Mapping[str, float]]
    patience: int

    def before_train(self, trainer: Trainer) -> None:
        """Stop at once when a run that has stopped is resumed; in the middle of an epoch, finish it first."""
        if trainer.progress.metrics:
            self._stop_if_due(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Stop if the last evaluations have not improved."""
        if trainer.progress.metrics:
            self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        if not self.curve or trainer.progress.epoch == trainer.epochs:
            return
        best = find_best(self.curve)
        if len(self.curve) - 1 - best < self.patience:
            return
        trainer.stopped = trainer.complete = True
        result = self.curve[best]
        logger.info(
            "stopped after epoch %d: no improvement in %d evaluations; "
            "the best weights are those of epoch %d (%.2f%%), in model_best.pth",
            trainer.progress.epoch,
            self.patience,
            result["epoch"],
            selection_accuracy(result),
        )
