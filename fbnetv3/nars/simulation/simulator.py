"""Discrete-event simulation of a search on a cluster with failures and stragglers (Sec. 3.3).

Only time is simulated: the candidates and the length of their epochs are inputs.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fbnetv3.nars.simulation.workload import Attempt, Cluster, SimulationResult, Workload
from fbnetv3.utils.checks import check_int, check_number

_HOUR = 3600.0


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

    In rounds, as in `fbnetv3.nars.algorithm.rounds`, a round starts `predictor_seconds` after the last trial of the
    previous one has ended, and a failed trial goes to the end of the round's queue.

    Asynchronously, a trial is proposed from the results so far whenever a slot is free and no trial of the first round
    and no retry is waiting, and fewer than `max_in_flight` trials are proposed but not ended, which limits how outdated
    a proposal can be (default: the size of the first round). The stopping epoch is known when the first round has
    ended: later trials train on until then, and those already past it end after their current epoch.

    A failed trial gets `retries` additional attempts. An attempt draws the same noise in both modes.
    """
    if max_in_flight is None:
        max_in_flight = len(workload.rounds[0])
    check_int(max_in_flight, "max_in_flight", 1)
    check_int(retries, "retries", 0)
    check_number(predictor_seconds, "predictor_seconds", 0)
    simulation = _Simulation(workload, cluster, asynchronous, max_in_flight, retries, predictor_seconds, seed)
    simulation.run()
    return SimulationResult(workload, cluster, tuple(simulation.attempts), tuple(simulation.results_at_proposal))


@dataclass
class _RunningAttempt:
    """An attempt in progress."""

    number: int
    start: float
    epoch_seconds: float
    first_epoch: int  # epochs completed by earlier attempts
    last_epoch: int  # after which it ends
    failure_time: float  # when it fails unless it has ended by then
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
    unfinished: list[int] = field(default_factory=list)  # trials per round
    num_ended: int = 0
    num_succeeded: int = 0
    results_at_proposal: list[int] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)  # a heap
    num_scheduled: int = 0

    def run(self) -> None:
        """Process events until the last trial has ended."""
        self.free_slots = self.cluster.slots
        self.unfinished = [len(trials) for trials in self.workload.rounds]
        self._start_round(0)
        self._fill_slots()
        while self.events:
            self.now, _, process = heapq.heappop(self.events)
            process()
            self._fill_slots()

    def _schedule(self, time: float, process: Callable[[], None]) -> None:
        """Add an event; of simultaneous events, the one scheduled first comes first."""
        self.num_scheduled += 1
        heapq.heappush(self.events, (time, self.num_scheduled, process))

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
            if not self.queue:
                num_proposed = len(self.results_at_proposal)
                in_flight = num_proposed - self.num_ended
                all_proposed = num_proposed == len(self.workload.epoch_seconds)
                if not self.asynchronous or all_proposed or in_flight >= self.max_in_flight:
                    return
                self._propose()
            self._start_attempt(*self.queue.popleft())

    def _start_attempt(self, trial: int, number: int, completed: int) -> None:
        cluster = self.cluster
        epoch_seconds = self.workload.epoch_seconds[trial] / cluster.speedup
        failure_time = math.inf
        if cluster.stragglers or cluster.failure_rate:
            # Log-normal with mean 1
            rng = np.random.default_rng((self.seed, trial, number))
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
            number, self.now, epoch_seconds, completed, max(last_epoch, completed), failure_time
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
        self.attempts.append(Attempt(trial, attempt.number, attempt.start, self.now, epochs, failed))
        # Release the GPUs, at once or after their repair
        if failed and self.cluster.repair:
            self._schedule(self.now + self.cluster.repair, self._release_slot)
        else:
            self._release_slot()
        if failed and attempt.number < self.retries:
            self.queue.append((trial, attempt.number + 1, epochs))
        else:
            self._end_trial(trial, failed)

    def _release_slot(self) -> None:
        self.free_slots += 1

    def _end_trial(self, trial: int, failed: bool) -> None:
        round = self.workload.trial_rounds[trial]
        self.num_ended += 1
        self.num_succeeded += not failed
        self.unfinished[round] -= 1
        if self.unfinished[round]:
            return
        # The round has ended
        if self.asynchronous and round == 0:
            self._apply_stopping_epoch()
        elif not self.asynchronous and round + 1 < len(self.workload.rounds):
            self._schedule(self.now + self.predictor_seconds, partial(self._start_round, round + 1))

    def _apply_stopping_epoch(self) -> None:
        """End running trials at the stopping epoch, which is now known, or after their current epoch."""
        for trial, attempt in self.running.items():
            current_epoch = attempt.first_epoch + math.ceil(self._elapsed_epochs(attempt))
            attempt.last_epoch = min(attempt.last_epoch, max(self.workload.stopping_epoch, current_epoch))
            attempt.version += 1
            self._schedule_end(trial)
