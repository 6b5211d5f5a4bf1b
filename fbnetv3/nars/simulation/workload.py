"""The trials of a search as work, a cluster to do it, and what came of it in virtual time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fbnetv3.errors import UsageError


@dataclass(frozen=True)
class Workload:
    """The trials of a search, in the order in which they are proposed.

    Attributes:
        rounds: for each round, the GPU seconds of an epoch of each of its trials.
        full_epochs: of the trials of the first round.
        stop_epoch: at which later trials end (Sec. 3.3).

    Raises:
        UsageError: a round without trials, times that are none, or a stop after the last epoch.
    """

    rounds: tuple[tuple[float, ...], ...]
    full_epochs: int
    stop_epoch: int

    def __post_init__(self) -> None:
        if not self.rounds or not all(self.rounds):
            raise UsageError("rounds: each needs a trial")
        if not all(math.isfinite(seconds) and seconds > 0 for trials in self.rounds for seconds in trials):
            raise UsageError("rounds: the seconds of an epoch are more than 0 for each trial")
        if not 1 <= self.stop_epoch <= self.full_epochs:
            raise UsageError(f"stop epoch {self.stop_epoch}: choose one from 1 to {self.full_epochs}, the last one")

    @property
    def epoch_seconds(self) -> list[float]:
        """GPU seconds of an epoch of each trial, by number."""
        return [seconds for trials in self.rounds for seconds in trials]

    @property
    def round_of(self) -> list[int]:
        """The round of each trial, by number."""
        return [number for number, trials in enumerate(self.rounds) for _ in trials]

    def epochs(self, round: int) -> int:
        """How far the trials of a round are trained."""
        return self.stop_epoch if round else self.full_epochs

    @property
    def gpu_seconds(self) -> float:
        """What all trials take on one GPU each, if nothing fails."""
        return sum(sum(trials) * self.epochs(number) for number, trials in enumerate(self.rounds))


@dataclass(frozen=True)
class Cluster:
    """Where trials run, and what goes wrong there.

    Attributes:
        gpus: in all.
        gpus_per_trial: that train one candidate together.
        scaling: share of the speed per GPU that is left whenever a trial's GPUs are doubled.
        failure_rate: failures of a GPU in an hour of its work; each ends the attempt that it is part of.
        stragglers: standard deviation of the logarithm of how slow an attempt is. The mean stays 1, so that it changes
            who waits for whom, not the work.
        startup: seconds from the start of an attempt to its first epoch.
        repair: seconds for which the GPUs of a failed attempt take no other.
        checkpoints: whether the next attempt goes on after the last whole epoch, or from the beginning.

    Raises:
        UsageError: numbers that make no cluster.
    """

    gpus: int
    gpus_per_trial: int = 1
    scaling: float = 1.0
    failure_rate: float = 0.0
    stragglers: float = 0.0
    startup: float = 0.0
    repair: float = 0.0
    checkpoints: bool = True

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise UsageError(f"{self.gpus} GPUs: at least 1 is needed")
        if not 1 <= self.gpus_per_trial <= self.gpus:
            raise UsageError(f"{self.gpus_per_trial} GPUs per trial: choose from 1 to {self.gpus}, all there are")
        if not 0 < self.scaling <= 1:
            raise UsageError(f"scaling {self.scaling:g}: is a share, more than 0 and at most 1")
        for name in ("failure_rate", "stragglers", "startup", "repair"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"{name.replace('_', ' ')} {value:g}: is a number of at least 0")

    @property
    def slots(self) -> int:
        """Trials at a time."""
        return self.gpus // self.gpus_per_trial

    @property
    def speedup(self) -> float:
        """How many times as fast a trial is as on one GPU."""
        return self.gpus_per_trial * self.scaling ** math.log2(self.gpus_per_trial)


@dataclass(frozen=True)
class Attempt:
    """An attempt at a trial.

    Attributes:
        trial: its number, from 0.
        number: from 0.
        start, end: in seconds since the search began.
        epochs: of the trial that are done when it ends.
        failed: whether a failure ended it.
    """

    trial: int
    number: int
    start: float
    end: float
    epochs: int
    failed: bool


@dataclass(frozen=True)
class Simulated:
    """A search that has been simulated.

    Attributes:
        load, cluster: what was simulated, and where.
        attempts: in the order in which they ended.
        known: for each trial, how many had succeeded when it was proposed.
    """

    load: Workload
    cluster: Cluster
    attempts: tuple[Attempt, ...]
    known: tuple[int, ...]

    @cached_property
    def wall(self) -> float:
        """Seconds to the end of the last trial."""
        return max(attempt.end for attempt in self.attempts)

    @property
    def gpu_seconds(self) -> float:
        """Seconds in which GPUs worked on attempts, in vain or not."""
        return self.cluster.gpus_per_trial * sum(attempt.end - attempt.start for attempt in self.attempts)

    @property
    def utilisation(self) -> float:
        """The share of the cluster's time in which it worked on attempts."""
        return self.gpu_seconds / (self.cluster.gpus * self.wall)

    @property
    def failures(self) -> int:
        """Attempts that failed."""
        return sum(attempt.failed for attempt in self.attempts)

    @property
    def lost(self) -> int:
        """Trials that have no accuracy after all attempts."""
        return len(self.known) - sum(not attempt.failed for attempt in self.attempts)

    @property
    def known_later(self) -> float:
        """Mean number of results that a proposal after the first round was based on; 0 with one round."""
        later = self.known[len(self.load.rounds[0]) :]
        return float(np.mean(later)) if later else 0.0
