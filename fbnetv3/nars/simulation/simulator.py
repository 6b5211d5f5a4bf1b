"""Discrete-event simulation of Algorithm 1 on a cluster with failures and stragglers (Sec. 3.3).

Only time is simulated: the candidates and the length of their epochs are inputs.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_int, check_number

_HOUR = 3600.0


@dataclass(frozen=True)
class Workload:
    """The trials of a search, in the order in which they are proposed."""

    rounds: tuple[tuple[float, ...], ...]  # GPU seconds per epoch of each trial, by round
    full_epochs: int  # epochs of the trials in the first round
    stopping_epoch: int  # epochs of later trials (Sec. 3.3)

    def __post_init__(self) -> None:
        # No empty rounds, no trials without work
        are_positive = all(0 < seconds < math.inf for seconds in self.epoch_seconds)
        if not self.rounds or not all(self.rounds) or not are_positive:
            raise FieldError(
                "each round must have trials, and each trial a positive, finite time per epoch", "rounds"
            )
        check_int(self.stopping_epoch, "stopping_epoch", 1, self.full_epochs)

    @cached_property
    def epoch_seconds(self) -> list[float]:
        """GPU seconds per epoch of each trial, over all rounds."""
        return [seconds for trials in self.rounds for seconds in trials]

    @cached_property
    def trial_rounds(self) -> list[int]:
        """Round of each trial, over all rounds."""
        return [index for index, trials in enumerate(self.rounds) for _ in trials]

    def epochs(self, round_index: int) -> int:
        """Return the number of epochs of a round's trials; only those of the first round train in full."""
        return self.stopping_epoch if round_index else self.full_epochs

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
    gpus_per_trial: int = 1  # number of GPUs that train one candidate together
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
class SimulatedAttempt:
    """One attempt at a trial."""

    trial: int  # number of the trial
    attempt_number: int  # 0 for the first attempt
    start: float  # seconds since the start of the search
    end: float  # seconds since the start of the search
    epochs: int  # epochs of the trial that were complete when the attempt ended
    failed: bool


@dataclass(frozen=True)
class SimulationResult:
    """A simulated search."""

    workload: Workload
    cluster: Cluster
    attempts: tuple[SimulatedAttempt, ...]  # in the order in which they ended
    results_at_proposal: tuple[int, ...]  # how many trials had succeeded when each was proposed

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


def simulate(
    workload: Workload,
    cluster: Cluster,
    *,
    asynchronous: bool = False,
    max_in_flight: int | None = None,
    retries: int = 1,
    predictor_seconds: float = 0.0,
    seed: int = 0,
) -> SimulationResult:
    """Simulate a search.

    In rounds, as in `PaperSearch`, a round starts `predictor_seconds` after the last trial of the previous one has
    ended, and a failed trial goes to the end of the round's queue.

    Asynchronously, there are no rounds after the first. When a slot is free and no trial is queued, the next one is
    proposed from the results so far. At most `max_in_flight` proposed trials may be unfinished (default: the size of
    the first round), so that proposals are not based on outdated results. The stopping epoch is known when the first
    round has ended: later trials train on until then, and those already past it end after their current epoch.

    A failed trial gets `retries` additional attempts. An attempt draws the same noise in both modes.
    """
    if max_in_flight is None:
        max_in_flight = len(workload.rounds[0])
    check_int(max_in_flight, "max_in_flight", 1)
    check_int(retries, "retries", 0)
    check_number(predictor_seconds, "predictor_seconds", 0)
    simulation = _Simulation(
        workload, cluster, asynchronous, max_in_flight, retries, predictor_seconds, seed
    )
    return simulation.run()


@dataclass
class _RunningAttempt:
    """An attempt in progress."""

    attempt_number: int
    start: float
    epoch_seconds: float
    first_epoch: int  # epochs completed by earlier attempts
    last_epoch: int  # epoch after which it ends
    failure_time: float  # time at which it fails unless it has ended by then
    version: int = 0  # incremented when its end is rescheduled


@dataclass
class _Simulation:
    """State of the simulated search, and the event loop."""

    workload: Workload
    cluster: Cluster
    asynchronous: bool
    max_in_flight: int
    retries: int
    predictor_seconds: float
    seed: int

    now: float = 0.0
    free_slots: int = 0
    queue: deque[tuple[int, int, int]] = field(default_factory=deque)  # trial, attempt, completed epochs
    running: dict[int, _RunningAttempt] = field(default_factory=dict)
    unfinished: list[int] = field(default_factory=list)  # number of unfinished trials per round
    num_ended: int = 0
    num_succeeded: int = 0
    results_at_proposal: list[int] = field(default_factory=list)
    attempts: list[SimulatedAttempt] = field(default_factory=list)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)  # a heap
    num_scheduled: int = 0

    def run(self) -> SimulationResult:
        """Process events until the last trial has ended."""
        self.free_slots = self.cluster.slots
        self.unfinished = [len(trials) for trials in self.workload.rounds]
        self._start_round(0)
        self._fill_slots()
        while self.events:
            self.now, _, process = heapq.heappop(self.events)
            process()
            self._fill_slots()
        return SimulationResult(
            self.workload, self.cluster, tuple(self.attempts), tuple(self.results_at_proposal)
        )

    def _schedule(self, time: float, process: Callable[[], None]) -> None:
        """Add an event; of simultaneous events, the one scheduled first comes first."""
        self.num_scheduled += 1
        heapq.heappush(self.events, (time, self.num_scheduled, process))

    def _start_round(self, round_index: int) -> None:
        for _ in self.workload.rounds[round_index]:
            self._propose()

    def _propose(self) -> None:
        """Queue the next trial."""
        self.queue.append((len(self.results_at_proposal), 0, 0))
        self.results_at_proposal.append(self.num_succeeded)

    def _fill_slots(self) -> None:
        """Start queued trials while slots are free; asynchronously, also propose new ones."""
        while self.free_slots:
            if not self.queue:
                num_proposed = len(self.results_at_proposal)
                in_flight = num_proposed - self.num_ended
                all_proposed = num_proposed == len(self.workload.epoch_seconds)
                if not self.asynchronous or all_proposed or in_flight >= self.max_in_flight:
                    return
                self._propose()
            self._start_attempt(*self.queue.popleft())

    def _start_attempt(self, trial: int, attempt_number: int, completed: int) -> None:
        cluster = self.cluster
        epoch_seconds = self.workload.epoch_seconds[trial] / cluster.speedup
        failure_time = math.inf
        if cluster.stragglers or cluster.failure_rate:
            # Log-normal with mean 1
            rng = np.random.default_rng((self.seed, trial, attempt_number))
            slowdown = cluster.stragglers * rng.standard_normal() - cluster.stragglers**2 / 2
            epoch_seconds *= math.exp(slowdown)
            time_to_failure = rng.standard_exponential()
            if cluster.failure_rate:
                failures_per_second = cluster.failure_rate * cluster.gpus_per_trial / _HOUR
                failure_time = self.now + time_to_failure / failures_per_second
        # The stopping epoch is unknown while the first round runs
        last_epoch = self.workload.full_epochs
        if not self.unfinished[0]:
            last_epoch = self.workload.epochs(self.workload.trial_rounds[trial])
        self.free_slots -= 1
        self.running[trial] = _RunningAttempt(
            attempt_number, self.now, epoch_seconds, completed, max(last_epoch, completed), failure_time
        )
        self._schedule_end(trial)

    def _finish_time(self, attempt: _RunningAttempt) -> float:
        """Return when an attempt completes its last epoch if it does not fail."""
        epochs = attempt.last_epoch - attempt.first_epoch
        return attempt.start + self.cluster.startup + epochs * attempt.epoch_seconds

    def _elapsed_epochs(self, attempt: _RunningAttempt) -> float:
        """Return how many epochs of an attempt have passed, fractions included; 0 during its startup."""
        return max(0.0, (self.now - attempt.start - self.cluster.startup) / attempt.epoch_seconds)

    def _schedule_end(self, trial: int) -> None:
        attempt = self.running[trial]
        end = min(self._finish_time(attempt), attempt.failure_time)
        self._schedule(end, partial(self._end_attempt, trial, attempt.version))

    def _end_attempt(self, trial: int, version: int) -> None:
        attempt = self.running.get(trial)
        if attempt is None or attempt.version != version:
            return  # its end has been rescheduled
        del self.running[trial]
        failed = attempt.failure_time < self._finish_time(attempt)
        epochs = attempt.last_epoch
        if failed:
            # What a retry need not repeat
            resumable = attempt.first_epoch + math.floor(self._elapsed_epochs(attempt))
            epochs = resumable if self.cluster.checkpoints else 0
        number = attempt.attempt_number
        self.attempts.append(SimulatedAttempt(trial, number, attempt.start, self.now, epochs, failed))
        # Release the GPUs, at once or after their repair
        if failed and self.cluster.repair:
            self._schedule(self.now + self.cluster.repair, self._release_slot)
        else:
            self._release_slot()
        if failed and number < self.retries:
            self.queue.append((trial, number + 1, epochs))
        else:
            self._end_trial(trial, failed)

    def _release_slot(self) -> None:
        self.free_slots += 1

    def _end_trial(self, trial: int, failed: bool) -> None:
        round_index = self.workload.trial_rounds[trial]
        self.num_ended += 1
        self.num_succeeded += not failed
        self.unfinished[round_index] -= 1
        if self.unfinished[round_index]:
            return
        # The round has ended
        if self.asynchronous and round_index == 0:
            self._apply_stopping_epoch()
        elif not self.asynchronous and round_index + 1 < len(self.workload.rounds):
            start = partial(self._start_round, round_index + 1)
            self._schedule(self.now + self.predictor_seconds, start)

    def _apply_stopping_epoch(self) -> None:
        """End running trials at the stopping epoch, which is now known, or after their current epoch."""
        for trial, attempt in self.running.items():
            current_epoch = attempt.first_epoch + math.ceil(self._elapsed_epochs(attempt))
            attempt.last_epoch = min(attempt.last_epoch, max(self.workload.stopping_epoch, current_epoch))
            attempt.version += 1
            self._schedule_end(trial)
