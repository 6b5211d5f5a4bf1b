"""A search that has really run, again in virtual time: how far the simulation is from what was recorded."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.trial_store import DONE, FILE, Trial, TrialsError, TrialStore
from fbnetv3.nars.simulation.simulator import simulate
from fbnetv3.nars.simulation.workload import Cluster, Workload

# Seconds without a trial after which a search has not only trained its predictor, but was away.
_AWAY = 30.0
# Share of a trial's time that is left when another one begins, for both to run at a time: a trial's end is noted a
# moment after it.
_OVERLAP = 0.1


@dataclass(frozen=True)
class Recorded:
    """A search that has run.

    Attributes:
        trials: those that are done.
        settings: of the search, as they were kept.
    """

    trials: tuple[Trial, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Stretch:
    """Trials of one round that ran without an interruption, recorded and simulated.

    Attributes:
        round: from 0.
        trials: in the order in which they started.
        workers: most of them at a time.
        recorded: seconds from the first one's start to the last one's end.
        simulated: the same in virtual time.
    """

    round: int
    trials: tuple[Trial, ...]
    workers: int
    recorded: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulation, as a share of what was recorded."""
        return self.simulated / self.recorded - 1


def read_search(path: Path) -> Recorded:
    """The trials of a search that are done.

    Args:
        path: the folder of a search, or an SQLite file of trials. A file is copied and not opened itself.

    Raises:
        TrialsError: there are none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read(path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            shutil.copyfile(path, Path(folder) / FILE)
        except OSError as error:
            raise TrialsError(f"{path}: cannot be read ({error.strerror}): name a search's folder or file") from None
        try:
            return _read(Path(folder))
        except TrialsError as error:
            raise TrialsError(str(error).replace(str(Path(folder) / FILE), str(path))) from None


def _read(folder: Path) -> Recorded:
    with contextlib.closing(TrialStore(folder)) as store:
        trials = tuple(trial for trial in store.all() if trial.status == DONE and trial.seconds)
        if not trials:
            raise TrialsError(f"{store.file}: has no trial that is done")
        return Recorded(trials, store.about().get("settings", {}))


def replay(trials: Sequence[Trial], seconds: Sequence[float] | None = None) -> list[Stretch]:
    """Simulate what was recorded, each round by itself, and in parts where the search was interrupted.

    What a trial had trained before an interruption is not recorded, and not simulated.

    Args:
        trials: that are done.
        seconds: what each takes, (N,); None for what was recorded.

    Returns:
        A stretch for each round, or more where it was interrupted, in the order in which they ran.

    Raises:
        UsageError: not as many seconds as trials.
    """
    seconds = [_seconds(trial) for trial in trials] if seconds is None else list(seconds)
    if len(seconds) != len(trials):
        raise UsageError(f"{len(seconds)} times for {len(trials)} trials: one each is needed")
    taken = {trial.number: float(value) for trial, value in zip(trials, seconds, strict=True)}
    found = []
    for part in _parts(trials):
        workers = _most_at_a_time(part)
        load = Workload((tuple(taken[trial.number] for trial in part),), 1, 1)
        wall = max(_end(trial) for trial in part) - _start(part[0])
        found.append(Stretch(part[0].round, tuple(part), workers, wall, simulate(load, Cluster(workers)).wall))
    return found


def share_out(trials: Sequence[Trial], costs: np.ndarray) -> np.ndarray:
    """What each trial would take if time followed cost: its epochs times its cost, at one rate for all.

    The rate is that at which all trials together take as long as they did.

    Args:
        trials: that are done, N.
        costs: of their candidates, (N,), such as multiply-adds.

    Returns:
        Seconds (N,).
    """
    work = np.asarray(costs, np.float64) * [trial.epochs for trial in trials]
    return work * sum(_seconds(trial) for trial in trials) / work.sum()


def spread(trials: Sequence[Trial], costs: np.ndarray) -> list[float]:
    """How far trials are from what their cost says: the standard deviation of the logarithm of recorded by predicted.

    Each round has a rate of its own, as what else runs on a machine changes. `Cluster.stragglers` stands for this.

    Args:
        trials: that are done, N.
        costs: of their candidates, (N,).

    Returns:
        One for each round.
    """
    found = []
    for number in sorted({trial.round for trial in trials}):
        here = [i for i, trial in enumerate(trials) if trial.round == number]
        part = [trials[i] for i in here]
        predicted = share_out(part, np.asarray(costs)[here])
        found.append(float(np.std(np.log([_seconds(trial) for trial in part]) - np.log(predicted))))
    return found


def _seconds(trial: Trial) -> float:
    assert trial.seconds is not None  # it is done
    return trial.seconds


def _end(trial: Trial) -> float:
    assert trial.finished is not None  # it is done
    return trial.finished


def _start(trial: Trial) -> float:
    return _end(trial) - _seconds(trial)


def _parts(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials by round, and by interruption, each part in the order of its trials' starts."""
    parts: list[list[Trial]] = []
    last = 0.0  # end of what has run so far
    for trial in sorted(trials, key=lambda trial: (_start(trial), trial.number)):
        if not parts or parts[-1][0].round != trial.round or _start(trial) - last > _AWAY:
            parts.append([])
        parts[-1].append(trial)
        last = max(last, _end(trial))
    return parts


def _most_at_a_time(trials: Sequence[Trial]) -> int:
    """How many trials overlapped at most."""
    return max(
        sum(_start(other) <= _start(trial) < _end(other) - _OVERLAP * _seconds(other) for other in trials)
        for trial in trials
    )
