"""The trials of a search as a proposal sees them.

A proposal depends only on the outcomes of the segments that must have ended before it, whatever else has ended in the
meantime. Therefore the number of workers, their speed and interruptions do not change which candidates are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, Trial


@dataclass(frozen=True)
class History:
    """Trials with the part of their curves that is visible."""

    trials: tuple[Trial, ...]  # by number
    pending: frozenset[int]  # numbers of the trials with a segment whose outcome is not visible
    failed: frozenset[int]  # numbers of the trials whose last visible segment failed
    epochs: int  # length of a full evaluation

    @cached_property
    def completed(self) -> tuple[Trial, ...]:
        """Trials that ran to the last epoch."""
        return tuple(trial for trial in self.trials if len(trial.curve) == self.epochs)

    @cached_property
    def paused(self) -> tuple[Trial, ...]:
        """Trials that were stopped before the last epoch and can be continued."""
        excluded = self.pending | self.failed
        return tuple(
            trial
            for trial in self.trials
            if 0 < len(trial.curve) < self.epochs and trial.number not in excluded
        )

    @cached_property
    def num_segments(self) -> int:
        """Number of segments proposed so far."""
        return sum(len(trial.segments) for trial in self.trials)

    @cached_property
    def state(self) -> Mapping[str, Any]:
        """State that the last proposal left for the next one; trials that no model proposed leave none."""
        segments = [segment for trial in self.trials for segment in trial.segments if segment.state]
        return max(segments, key=lambda segment: segment.number).state if segments else {}

    def spent_epochs(self, continues: bool) -> int:
        """Return the epochs of all segments proposed so far.

        Unless evaluators continue trials from where they stopped, a segment starts from the first epoch.
        """
        spent = 0
        for trial in self.trials:
            ends = [segment.epochs for segment in trial.segments]
            spent += ends[-1] if continues else sum(ends)
        return spent


def stack_candidates(trials: Sequence[Trial]) -> np.ndarray:
    """Return the candidates of trials, integers (N, variables)."""
    return np.array([trial.candidate for trial in trials])


def visible_history(trials: Sequence[Trial], epochs: int, num_visible: int | None = None) -> History:
    """Return the trials as seen if only the first `num_visible` segments (default: all) are known to have ended."""
    visible_trials = []
    pending = set()
    failed = set()
    for trial in trials:
        visible = [
            segment
            for segment in trial.segments
            if segment.has_ended and (num_visible is None or segment.number < num_visible)
        ]
        if len(visible) < len(trial.segments):
            pending.add(trial.number)
        if visible and visible[-1].status == FAILED:
            failed.add(trial.number)
        reached = max((segment.epochs for segment in visible if segment.status == COMPLETED), default=0)
        visible_trials.append(replace(trial, curve=trial.curve[:reached]))
    return History(tuple(visible_trials), frozenset(pending), frozenset(failed), epochs)
