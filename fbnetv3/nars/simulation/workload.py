"""Inputs and results of a search simulation: the trials' work, the cluster, and the attempts on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_int, check_number


@dataclass(frozen=True)
class Workload:
    """The trials of a search, in the order in which they are proposed."""

    rounds: tuple[tuple[float, ...], ...]  # GPU seconds per epoch of each trial, by round
    full_epochs: int  # of the trials in the first round
    stopping_epoch: int  # of later trials (Sec. 3.3)

    def __post_init__(self) -> None:
        # No empty rounds, no trials without work
        if not self.rounds or not all(self.rounds) or not all(0 < s < math.inf for s in self.epoch_seconds):
            raise FieldError("each round needs trials, and their seconds per epoch must be positive", "rounds")
        check_int(self.stopping_epoch, "stopping_epoch", 1, self.full_epochs)

    @cached_property
    def epoch_seconds(self) -> list[float]:
        """GPU seconds per epoch of each trial, over all rounds."""
        return [seconds for trials in self.rounds for seconds in trials]

    @cached_property
    def trial_rounds(self) -> list[int]:
        """Round of each trial, over all rounds."""
        return [index for index, trials in enumerate(self.rounds) for _ in trials]

    def epochs(self, round: int) -> int:
        """Return the number of epochs of a round's trials; only those of the first round train in full."""
        return self.stopping_epoch if round else self.full_epochs

    @property
    def gpu_seconds(self) -> float:
        """Total work with one GPU per trial and no failures."""
        return sum(sum(trials) * self.epochs(index) for index, trials in enumerate(self.rounds))


@dataclass(frozen=True)
class Cluster:
    """GPUs that run trials, and how they fail and vary.

    A failure ends the attempt that the GPU works on. The mean slowdown of attempts is 1, so stragglers change who waits
    for whom, but not the expected work.
    """

    gpus: int
    gpus_per_trial: int = 1  # that train one candidate together
    scaling: float = 1.0  # parallel efficiency per doubling of `gpus_per_trial`
    failure_rate: float = 0.0  # failures per GPU hour of work
    stragglers: float = 0.0  # standard deviation of the logarithm of an attempt's slowdown
    startup: float = 0.0  # seconds from the start of an attempt to its first epoch
    repair: float = 0.0  # seconds for which the GPUs of a failed attempt are unavailable
    checkpoints: bool = True  # a retry resumes after the last complete epoch instead of starting over

    def __post_init__(self) -> None:
        check_int(self.gpus, "gpus", 1)
        check_int(self.gpus_per_trial, "gpus_per_trial", 1, self.gpus)
        check_number(self.scaling, "scaling", 0.01, 1)
        for name in ("failure_rate", "stragglers", "startup", "repair"):
            check_number(getattr(self, name), name, 0)

    @property
    def slots(self) -> int:
        """Number of trials that run concurrently."""
        return self.gpus // self.gpus_per_trial

    @property
    def speedup(self) -> float:
        """Speedup of a trial over one GPU."""
        # The efficiency falls by the same factor with every doubling
        return self.gpus_per_trial * self.scaling ** math.log2(self.gpus_per_trial)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial."""

    trial: int
    number: int  # 0 for the first attempt
    start: float  # in seconds since the search began, like `end`
    end: float
    epochs: int  # of the trial completed by the end of the attempt
    failed: bool


@dataclass(frozen=True)
class SimulationResult:
    """A simulated search."""

    workload: Workload
    cluster: Cluster
    attempts: tuple[Attempt, ...]  # in the order in which they ended
    results_at_proposal: tuple[int, ...]  # for each trial, how many trials had succeeded when it was proposed

    @cached_property
    def wall_seconds(self) -> float:
        """Time from the start of the search to the end of its last trial."""
        return max(attempt.end for attempt in self.attempts)

    @property
    def gpu_seconds(self) -> float:
        """GPU time spent on attempts, failed ones included."""
        return self.cluster.gpus_per_trial * sum(attempt.end - attempt.start for attempt in self.attempts)

    @property
    def utilization(self) -> float:
        """Fraction of the cluster's GPU time that was spent on attempts."""
        return self.gpu_seconds / (self.cluster.gpus * self.wall_seconds)

    @property
    def failures(self) -> int:
        """Number of failed attempts."""
        return sum(attempt.failed for attempt in self.attempts)

    @property
    def lost_trials(self) -> int:
        """Number of trials whose attempts all failed."""
        # A trial has at most one attempt that succeeded
        return len(self.results_at_proposal) - sum(not attempt.failed for attempt in self.attempts)

    @property
    def mean_results_at_proposal(self) -> float:
        """Mean of `results_at_proposal` over the trials after the first round; 0 if there are none."""
        later_trials = self.results_at_proposal[len(self.workload.rounds[0]) :]
        return float(np.mean(later_trials)) if later_trials else 0.0
