"""Evaluations of a detector's run between its steps: the best one, its weights, and early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from detectron2.engine import HookBase

from fbnetv3.detection.training.evaluation_tables import Results

logger = logging.getLogger(__name__)


@dataclass
class BestEvaluation:
    """The best of a run's evaluations by average precision, and how many have followed it; saved in checkpoints."""

    step: int = 0  # completed steps of the best evaluation
    precision: float = -math.inf  # its average precision in percent
    evaluations_since: int = 0  # evaluations after the best one
    last_step: int = 0  # completed steps of the last evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation

    def add(self, step: int, precision: float, metrics: Mapping[str, float]) -> bool:
        """Add an evaluation after a number of steps, and return whether it is the best one; NaN is not."""
        self.last_step = step
        self.metrics = dict(metrics)
        if precision > self.precision:
            self.step, self.precision, self.evaluations_since = step, precision, 0
            return True
        self.evaluations_since += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return all values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all values."""
        for name in asdict(self):
            setattr(self, name, state[name])


def selection_precision(results: Results) -> float:
    """Return the average precision by which weights are compared: that of boxes in the first dataset; NaN without."""
    tasks = next(iter(results.values()), {})
    metrics = tasks.get("bbox") or next(iter(tasks.values()), {})
    return next(iter(metrics.values()), math.nan)


class PeriodicEvaluationHook(HookBase):
    """Evaluates every `period` steps, and ends a run after `patience` evaluations without gain, as a complete one.

    A checkpoint is written before the evaluation at the same step. A run that resumes from it evaluates first, so that
    it stops where an uninterrupted one does.

    Args:
        period: steps between two evaluations; 0 for none.
        patience: evaluations without gain in average precision; 0 never ends the run early.
        best: the evaluations so far, to which `evaluate` adds one.
        evaluate: evaluates after a number of steps and returns the metrics.
        save_checkpoint: called with the number of steps before the run ends early.
    """

    def __init__(
        self,
        period: int,
        patience: int,
        best: BestEvaluation,
        evaluate: Callable[[int], Mapping[str, float]],
        save_checkpoint: Callable[[int], None],
    ) -> None:
        self.period = period
        self.patience = patience
        self.best = best
        self.evaluate = evaluate
        self.save_checkpoint = save_checkpoint

    def before_train(self) -> None:
        """Evaluate the checkpoint from which the run resumes, if that is due; stop a run that has stopped before."""
        start = self.trainer.start_iter
        if start and self._is_due(start) and self.best.last_step != start:
            self._evaluate(start)
        else:
            self._stop_if_due()

    def after_step(self) -> None:
        """Evaluate if an evaluation is due. The last one follows the training."""
        completed = self.trainer.iter + 1
        if self._is_due(completed) and completed != self.trainer.max_iter:
            self._evaluate(completed)

    def _is_due(self, completed: int) -> bool:
        return self.period > 0 and completed % self.period == 0

    def _evaluate(self, completed: int) -> None:
        metrics = self.evaluate(completed)
        if metrics:
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        if self._stop_if_due():
            self.save_checkpoint(completed)

    def _stop_if_due(self) -> bool:
        if not self.patience or self.best.evaluations_since < self.patience:
            return False
        self.trainer.stop()
        logger.info(
            "stopped after step %d: no gain in AP in %d evaluations; the best weights are those of step %d (%.2f), "
            "in model_best.pth",
            self.best.last_step,
            self.patience,
            self.best.step,
            self.best.precision,
        )
        return True
