"""Discrete-event simulation of a search on a cluster with failures and stragglers (Sec. 3.3).

Only time is simulated: the candidates and the length of their epochs are inputs.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from fbnetv3.nars.simulation.workload import Attempt, Cluster, SimulationResult, Workload
from fbnetv3.utils.checks import check_int, check_number

_HOUR = 3600.0

# Kinds of events
_ATTEMPT_ENDS = "attempt ends"
_GPUS_REPAIRED = "GPUs repaired"
_ROUND_STARTS = "round starts"


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

    In rounds, as in `fbnetv3.nars.algorithm.rounds`, a round starts when all trials of the previous one have ended, and
    a failed trial goes to the end of the round's queue.

    Asynchronously, a trial is proposed from the results so far whenever a slot is free and no trial of the first round
    and no retry is waiting. The stopping epoch is known when the first round has ended: later trials train on until
    then, and those already past it end after their current epoch.

    Args:
        workload: trials to simulate.
        cluster: cluster on which they run.
        asynchronous: propose trials one by one instead of in rounds.
        max_in_flight: asynchronous only: maximum number of trials proposed but not ended, which limits how outdated a
            proposal can be. Default: the size of the first round.
        retries: additional attempts at a failed trial.
        predictor_seconds: time between rounds, in which the predictor is trained. Asynchronous trials do not wait for
            it.
        seed: seed of failures and stragglers. An attempt draws the same noise in both modes.
    """
    if max_in_flight is None:
        max_in_flight = len(workload.rounds[0])
    check_int(max_in_flight, "max_in_flight", 1)
    check_int(retries, "retries", 0)
    check_int(seed, "seed", 0)
    check_number(predictor_seconds, "predictor_seconds", 0)
    simulation = _Simulation(workload, cluster, asynchronous, max_in_flight, retries, predictor_seconds, seed)
    simulation.run()
    return SimulationResult(workload, cluster, tuple(simulation.attempts), tuple(simulation.results_at_proposal))


def attempt_noise(seed: int, trial: int, attempt: int) -> tuple[float, float]:
    """Draw an attempt's noise: a standard normal (its slowdown) and a standard exponential (its time to failure)."""
    rng = np.random.default_rng((seed, trial, attempt))
    return float(rng.standard_normal()), float(rng.standard_exponential())


@dataclass
class _RunningAttempt:
    """An attempt in progress.

    Attributes:
        number: index of the attempt.
        start: start time in seconds.
        epoch_seconds: seconds per epoch.
        first_epoch: epochs completed by earlier attempts.
        last_epoch: epoch after which it ends.
        failure_time: when it fails unless it has ended by then.
        version: incremented when its end is rescheduled; events of earlier versions are stale.
    """

    number: int
    start: float
    epoch_seconds: float
    first_epoch: int
    last_epoch: int
    failure_time: float
    version: int = 0


class _Simulation:
    """State of the simulated search, and the event loop."""

    def __init__(
        self,
        workload: Workload,
        cluster: Cluster,
        asynchronous: bool,
        max_in_flight: int,
        retries: int,
        predictor_seconds: float,
        seed: int,
    ) -> None:
        self.workload = workload
        self.cluster = cluster
        self.asynchronous = asynchronous
        self.max_in_flight = max_in_flight
        self.retries = retries
        self.predictor_seconds = predictor_seconds
        self.seed = seed

        self.epoch_seconds = workload.epoch_seconds
        self.trial_rounds = workload.trial_rounds
        self.now = 0.0
        self.free_slots = cluster.slots
        self.queue: deque[tuple[int, int, int]] = deque()  # trial, attempt, completed epochs
        self.running: dict[int, _RunningAttempt] = {}
        self.unfinished = [len(trials) for trials in workload.rounds]  # trials per round
        self.num_ended = 0
        self.num_succeeded = 0
        self.results_at_proposal: list[int] = []
        self.attempts: list[Attempt] = []
        self._events: list[tuple[float, int, str, int, int]] = []  # a heap
        self._num_scheduled = 0

    def run(self) -> None:
        """Process events until the last trial has ended."""
        self._start_round(0)
        self._fill_slots()
        while self._events:
            self.now, _, kind, index, version = heapq.heappop(self._events)
            if kind == _ROUND_STARTS:
                self._start_round(index)
            elif kind == _GPUS_REPAIRED:
                self.free_slots += 1
            elif index in self.running and self.running[index].version == version:
                self._end_attempt(index)
            else:
                continue  # the end of this attempt has been rescheduled
            self._fill_slots()

    def _schedule(self, time: float, kind: str, index: int = 0, version: int = 0) -> None:
        """Add an event; of simultaneous events, the one scheduled first comes first."""
        self._num_scheduled += 1
        heapq.heappush(self._events, (time, self._num_scheduled, kind, index, version))

    def _start_round(self, round: int) -> None:
        for _ in self.workload.rounds[round]:
            self._propose()

    def _propose(self) -> None:
        """Queue the next trial."""
        self.queue.append((len(self.results_at_proposal), 0, 0))
        self.results_at_proposal.append(self.num_succeeded)

    def _fill_slots(self) -> None:
        """Start queued trials while slots are free; asynchronously, also propose new ones."""
        while self.free_slots:
            if not self.queue and self._may_propose():
                self._propose()
            if not self.queue:
                return
            self._start_attempt(*self.queue.popleft())

    def _may_propose(self) -> bool:
        num_proposed = len(self.results_at_proposal)
        in_flight = num_proposed - self.num_ended
        return self.asynchronous and num_proposed < len(self.epoch_seconds) and in_flight < self.max_in_flight

    def _start_attempt(self, trial: int, number: int, completed: int) -> None:
        cluster = self.cluster
        epoch_seconds = self.epoch_seconds[trial] / cluster.speedup
        failure_time = math.inf
        if cluster.stragglers or cluster.failure_rate:
            slowdown, time_to_failure = attempt_noise(self.seed, trial, number)
            # Log-normal with mean 1
            epoch_seconds *= math.exp(cluster.stragglers * slowdown - cluster.stragglers**2 / 2)
            if cluster.failure_rate:
                failures_per_second = cluster.failure_rate * cluster.gpus_per_trial / _HOUR
                failure_time = self.now + time_to_failure / failures_per_second
        # The stopping epoch is unknown while the first round runs
        last_epoch = self.workload.full_epochs
        if not self.unfinished[0]:
            last_epoch = self.workload.epochs(self.trial_rounds[trial])
        self.free_slots -= 1
        self.running[trial] = _RunningAttempt(
            number, self.now, epoch_seconds, completed, max(last_epoch, completed), failure_time
        )
        self._schedule_end(trial)

    def _finish_time(self, attempt: _RunningAttempt) -> float:
        """Return when an attempt completes its last epoch if it does not fail."""
        epochs = attempt.last_epoch - attempt.first_epoch
        return attempt.start + self.cluster.startup + epochs * attempt.epoch_seconds

    def _elapsed_epochs(self, attempt: _RunningAttempt) -> float:
        """Return how many epochs of an attempt have passed, fractions included; negative during its startup."""
        return (self.now - attempt.start - self.cluster.startup) / attempt.epoch_seconds

    def _schedule_end(self, trial: int) -> None:
        attempt = self.running[trial]
        end = min(self._finish_time(attempt), attempt.failure_time)
        self._schedule(end, _ATTEMPT_ENDS, trial, attempt.version)

    def _end_attempt(self, trial: int) -> None:
        attempt = self.running.pop(trial)
        failed = attempt.failure_time < self._finish_time(attempt)
        epochs = self._resumable_epochs(attempt) if failed else attempt.last_epoch
        self.attempts.append(Attempt(trial, attempt.number, attempt.start, self.now, epochs, failed))
        # Release the GPUs, at once or after their repair
        if failed and self.cluster.repair:
            self._schedule(self.now + self.cluster.repair, _GPUS_REPAIRED)
        else:
            self.free_slots += 1
        if failed and attempt.number < self.retries:
            self.queue.append((trial, attempt.number + 1, epochs))
        else:
            self._end_trial(trial, failed)

    def _resumable_epochs(self, attempt: _RunningAttempt) -> int:
        """Return the epochs that a retry of a failed attempt need not repeat."""
        if not self.cluster.checkpoints:
            return 0
        return attempt.first_epoch + max(0, math.floor(self._elapsed_epochs(attempt)))

    def _end_trial(self, trial: int, failed: bool) -> None:
        round = self.trial_rounds[trial]
        self.num_ended += 1
        self.num_succeeded += not failed
        self.unfinished[round] -= 1
        if self.unfinished[round]:
            return
        # The round has ended
        if not self.asynchronous:
            if round + 1 < len(self.workload.rounds):
                self._schedule(self.now + self.predictor_seconds, _ROUND_STARTS, round + 1)
        elif round == 0:
            self._apply_stopping_epoch()

    def _apply_stopping_epoch(self) -> None:
        """End running trials at the stopping epoch, which is now known, or after their current epoch."""
        for trial, attempt in self.running.items():
            current_epoch = attempt.first_epoch + math.ceil(max(0.0, self._elapsed_epochs(attempt)))
            attempt.last_epoch = min(attempt.last_epoch, max(self.workload.stopping_epoch, current_epoch))
            attempt.version += 1
            self._schedule_end(trial)
