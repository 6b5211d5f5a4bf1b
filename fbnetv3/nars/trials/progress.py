"""The state of a running search, as reported to progress callbacks, and the ranking of its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fbnetv3.nars.trials.trial_store import COMPLETED, Trial

SearchStage = Literal["pretraining", "trials", "evolution", "done"]


@dataclass(frozen=True)
class SearchProgress:
    """The state of a running search."""

    stage: SearchStage
    trials: Sequence[Trial] = ()  # all proposed trials
    full_epochs: int = 1  # length of a full evaluation
    epochs_done: int = 0  # epochs of the trials so far
    epochs_planned: int = 0  # epochs of all trials
    best: Trial | None = None  # trial with the best value after the last epoch
    ended: Trial | None = None  # the trial with the segment that has just ended, if one has
    seconds_left: float | None = None  # estimated time to the end of the last trial
    message: str = ""  # an event to show to the user

    def count(self, status: str) -> int:
        """Count the trials that have a status."""
        return sum(trial.status == status for trial in self.trials)


ProgressCallback = Callable[[SearchProgress], object]
"""Called at every event; the search ends if it returns False."""


def count_epochs(trials: Sequence[Trial], continues: bool) -> int:
    """Count the epochs that trials have run so far.

    Unless evaluators continue trials from where they stopped, each part of a trial starts from the first epoch.
    """
    epochs = 0
    for trial in trials:
        ends = [segment.epochs for segment in trial.segments if segment.status == COMPLETED]
        epochs += max(ends, default=0) if continues else sum(ends)
    return epochs


def comparison_epoch(trials: Sequence[Trial], full_epochs: int) -> int:
    """Return the epoch after which trials are compared.

    It is the last one, except in Algorithm 1, whose later trials all end at the stopping epoch.
    """
    later_rounds = [trial.epochs for trial in trials if trial.round > 0]
    return min(later_rounds, default=full_epochs)


def rank_trials(trials: Sequence[Trial], epoch: int, sign: float = 1.0) -> list[Trial]:
    """Sort the trials that have reached an epoch by their value then, best first; `sign` is -1 if lower is better."""
    reached = [trial for trial in trials if len(trial.curve) >= epoch]
    return sorted(reached, key=lambda trial: (-sign * trial.value(epoch), trial.number))


def prediction_error(trials: Sequence[Trial], epoch: int) -> float | None:
    """Compute the root mean squared error of the values predicted when trials were proposed, if there are any."""
    pairs = [
        (trial.predicted, trial.value(epoch))
        for trial in trials
        if trial.predicted is not None and len(trial.curve) >= epoch
    ]
    if not pairs:
        return None
    return float(np.sqrt(np.mean([(predicted - value) ** 2 for predicted, value in pairs])))
