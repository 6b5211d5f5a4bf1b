"""Attempts at trials, which executors hand to their workers, and the outcomes that come back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fbnetv3.nars.evaluators.evaluator_registry import Evaluator
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.imports import user_modules


@dataclass(frozen=True)
class SearchContext:
    """Data shared by all attempts of a search."""

    space: Space
    evaluator: Evaluator
    objectives: tuple[str, ...] = ()  # names of what it measures, if it is more than one value
    imports: Sequence[str] = field(default_factory=user_modules)  # users' modules, imported first


@dataclass(frozen=True)
class TrialAttempt:
    """One attempt at a segment of a trial."""

    number: int  # number of the segment, from 0
    trial: int  # number of the trial, from 0
    vector: np.ndarray  # the candidate, integers (variables,)
    epochs: int  # epochs of the trial at the end of the segment
    full_epochs: int  # length of a full evaluation
    seed: int
    folder: Path | None  # folder for the evaluation's files
    failed_attempts: int = 0  # number of earlier attempts that failed
    alone: bool = False  # whether no other trial may use its GPU: its last attempt ran out of memory


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt: a learning curve from the first epoch or an error, and how many seconds it took."""

    number: int  # number of the segment
    curve: tuple[float, ...] | None  # accuracy after each epoch
    error: str | None
    seconds: float
    traceback: str | None = None  # of an error that is no UserError; executors move it to a log
    objectives: Mapping[str, float] = field(default_factory=dict)  # those after the first, by name
    out_of_memory: bool = False  # whether the GPU's memory was too small
    ends_worker: bool = False  # whether its process cannot evaluate anything else


class TimeLimit:
    """The time limit for attempts, in seconds; None for no limit. For executors that can kill an attempt."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def cap(self, timeout: float, start_times: Iterable[float]) -> float:
        """Shorten a timeout so that waiting ends when the first running attempt reaches the limit.

        `start_times` are the start times of the running attempts, at least one, on the monotonic clock.
        """
        if self.seconds is None:
            return timeout
        time_left = min(start_times) + self.seconds - time.monotonic()
        return max(0.0, min(timeout, time_left))

    def outcome_if_overdue(self, attempt: TrialAttempt, start_time: float) -> Outcome | None:
        """Return the failed outcome of an attempt that has reached the limit, else None."""
        elapsed = time.monotonic() - start_time
        if self.seconds is None or elapsed < self.seconds:
            return None
        error = f"killed after {elapsed:.0f} s: time_limit is {self.seconds:g} s"
        return Outcome(attempt.number, None, error, elapsed)
