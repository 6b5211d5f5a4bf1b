"""A search in virtual time: its trials on a cluster whose GPUs fail and differ, in rounds or without them (Sec. 3.3).

Only time is simulated: which candidates are tried, and how long an epoch of each takes, is given.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.simulation.workload import Attempt, Cluster, Simulated, Workload

_HOUR = 3600.0


def simulate(
    load: Workload,
    cluster: Cluster,
    *,
    asynchronous: bool = False,
    in_flight: int | None = None,
    retries: int = 1,
    learning: float = 0.0,
    seed: int = 0,
) -> Simulated:
    """Let a search pass in virtual time.

    In rounds, as `fbnetv3.nars.algorithm.rounds` does it, a round begins when all trials of the one before have ended, and what
    fails goes to the end of the round's queue. Asynchronously, whenever there is room and nothing of the first round or
    that is to be repeated waits, the next trial is proposed from the results so far. The stopping epoch is known when
    the first round has ended: until then, later trials are trained on, and those that are past it end with the epoch
    that they are in.

    Args:
        load: the trials.
        cluster: where they run.
        asynchronous: without the wait at the end of each round.
        in_flight: asynchronously, most trials proposed and not ended; None is the size of the first round. It bounds
            how little a proposal may be based on.
        retries: more attempts at a trial that fails.
        learning: seconds between the end of a round and the next (the predictor's training); asynchronously nothing
            waits for it.
        seed: of failures and stragglers. A trial's attempt has the same luck in rounds and without.

    Raises:
        UsageError: numbers that make no sense.
    """
    for name, value, least in (("retries", retries, 0), ("learning", learning, 0), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} {value:g}: is at least {least}")
    if in_flight is not None and in_flight < 1:
        raise UsageError(f"in flight {in_flight}: at least 1 trial has to be")
    simulation = _Simulation(load, cluster, asynchronous, in_flight or len(load.rounds[0]), retries, learning, seed)
    simulation.run()
    return Simulated(load, cluster, tuple(simulation.attempts), tuple(simulation.known))


def luck(seed: int, trial: int, attempt: int) -> tuple[float, float]:
    """The chances of an attempt: a standard normal number (how slow), and a standard exponential one (its failure)."""
    chance = np.random.default_rng((seed, trial, attempt))
    return float(chance.standard_normal()), float(chance.standard_exponential())


@dataclass
class _Running:
    """An attempt that goes on.

    Attributes:
        number: of the attempt.
        start: in seconds.
        pace: seconds of an epoch.
        done: epochs that it began with.
        target: epoch at which it is to end.
        fails: second at which it fails, if it has not ended.
        version: of its plan; events of others are stale.
    """

    number: int
    start: float
    pace: float
    done: int
    target: int
    fails: float
    version: int = 0


class _Simulation:
    """The state of a search at a moment, and what happens next."""

    def __init__(
        self,
        load: Workload,
        cluster: Cluster,
        asynchronous: bool,
        in_flight: int,
        retries: int,
        learning: float,
        seed: int,
    ) -> None:
        self.load, self.cluster, self.seed = load, cluster, seed
        self.asynchronous, self.in_flight, self.retries, self.learning = asynchronous, in_flight, retries, learning
        self.seconds, self.round_of = load.epoch_seconds, load.round_of
        self.now, self.free = 0.0, cluster.slots
        self.waiting: deque[tuple[int, int, int]] = deque()  # trial, attempt, epochs done
        self.running: dict[int, _Running] = {}
        self.left = [len(trials) for trials in load.rounds]  # trials of each round that have not ended
        self.ended = self.succeeded = 0
        self.known: list[int] = []
        self.attempts: list[Attempt] = []
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0

    def run(self) -> None:
        """To the end of the last trial."""
        self._begin_round(0)
        self._fill()
        while self._events:
            self.now, _, kind, what, version = heapq.heappop(self._events)
            if kind == "attempt":
                if what not in self.running or self.running[what].version != version:
                    continue
                self._end_attempt(what)
            elif kind == "repaired":
                self.free += 1
            else:
                self._begin_round(what)
            self._fill()

    def _at(self, seconds: float, kind: str, what: int = 0, version: int = 0) -> None:
        self._count += 1  # of two events at a time, the one that was foreseen first
        heapq.heappush(self._events, (seconds, self._count, kind, what, version))

    def _begin_round(self, number: int) -> None:
        for _ in self.load.rounds[number]:
            self._propose()

    def _propose(self) -> None:
        self.waiting.append((len(self.known), 0, 0))
        self.known.append(self.succeeded)

    def _fill(self) -> None:
        """Start what there is room for."""
        while self.free:
            if not self.waiting and self.asynchronous and len(self.known) < len(self.seconds):
                if len(self.known) - self.ended >= self.in_flight:
                    return
                self._propose()
            if not self.waiting:
                return
            self._start(*self.waiting.popleft())

    def _start(self, trial: int, number: int, done: int) -> None:
        cluster = self.cluster
        slow, fails = luck(self.seed, trial, number) if cluster.stragglers or cluster.failure_rate else (0.0, 0.0)
        pace = self.seconds[trial] / cluster.speedup
        pace *= math.exp(cluster.stragglers * slow - cluster.stragglers**2 / 2)
        rate = cluster.failure_rate * cluster.gpus_per_trial / _HOUR
        # later trials learn where to stop when the first round has ended
        target = self.load.epochs(self.round_of[trial]) if not self.left[0] else self.load.full_epochs
        self.free -= 1
        self.running[trial] = _Running(
            number, self.now, pace, done, max(target, done), self.now + fails / rate if rate else math.inf
        )
        self._foresee(trial)

    def _finish(self, run: _Running) -> float:
        """When it reaches its last epoch."""
        return run.start + self.cluster.startup + (run.target - run.done) * run.pace

    def _foresee(self, trial: int) -> None:
        run = self.running[trial]
        self._at(min(self._finish(run), run.fails), "attempt", trial, run.version)

    def _end_attempt(self, trial: int) -> None:
        run = self.running.pop(trial)
        failed = run.fails < self._finish(run)
        epochs = self._kept(run) if failed else run.target
        self.attempts.append(Attempt(trial, run.number, run.start, self.now, epochs, failed))
        if failed and self.cluster.repair:
            self._at(self.now + self.cluster.repair, "repaired")
        else:
            self.free += 1
        if failed and run.number < self.retries:
            self.waiting.append((trial, run.number + 1, epochs))
        else:
            self._end_trial(trial, failed)

    def _kept(self, run: _Running) -> int:
        """Whole epochs that are done when an attempt fails."""
        if not self.cluster.checkpoints:
            return 0
        return run.done + max(0, math.floor((self.now - run.start - self.cluster.startup) / run.pace))

    def _end_trial(self, trial: int, failed: bool) -> None:
        number = self.round_of[trial]
        self.ended += 1
        self.succeeded += not failed
        self.left[number] -= 1
        if self.left[number]:
            return
        if self.asynchronous:
            if number == 0:
                self._settle()
        elif number + 1 < len(self.load.rounds):
            self._at(self.now + self.learning, "round", number + 1)

    def _settle(self) -> None:
        """The stopping epoch is known: what runs ends there, or with the epoch that it is in."""
        for trial, run in self.running.items():
            gone = (self.now - run.start - self.cluster.startup) / run.pace
            run.target = min(run.target, max(self.load.stop_epoch, run.done + math.ceil(max(0.0, gone))))
            run.version += 1
            self._foresee(trial)
