"""Replay a recorded search in the simulator, to compare simulated with recorded times."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.nars.algorithm.trial_store import DONE, TRIALS_FILE, Trial, TrialStore, TrialStoreError
from fbnetv3.nars.simulation.simulator import Cluster, Workload, simulate

# A gap of this many seconds without a trial is an interruption; training the predictor takes less
_INTERRUPTION_SECONDS = 30.0
# The end of a trial is recorded a moment late, so overlaps shorter than this fraction of its time do not count
_MIN_OVERLAP = 0.1


@dataclass(frozen=True)
class RecordedSearch:
    """A search that was run: the trials that succeeded, and its settings as stored."""

    trials: tuple[Trial, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """Trials of one round that ran without an interruption."""

    round: int  # from 0
    trials: tuple[Trial, ...]  # in the order in which they started
    workers: int  # maximum number of concurrent trials
    recorded_seconds: float  # from the start of the first trial to the end of the last one
    simulated_seconds: float  # the same in the simulation

    @property
    def error(self) -> float:
        """Relative error of the simulation."""
        return self.simulated_seconds / self.recorded_seconds - 1


def read_search(path: Path) -> RecordedSearch:
    """Read the completed trials of a search from its folder, or from an SQLite file of trials."""
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_store(path)
    # A file is copied, because SQLite may write next to it
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / TRIALS_FILE
        try:
            shutil.copyfile(path, copy)
            return _read_store(copy.parent)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); pass a search's folder or SQLite file"
            raise TrialStoreError(f"{path}: {reason}") from None
        except TrialStoreError as error:
            raise TrialStoreError(str(error).replace(str(copy), str(path))) from None


def _read_store(folder: Path) -> RecordedSearch:
    with contextlib.closing(TrialStore(folder)) as store:
        trials = tuple(trial for trial in store.trials() if trial.status == DONE and trial.seconds)
        if not trials:
            raise TrialStoreError(f"{store.file}: has no completed trials")
        return RecordedSearch(trials, store.metadata().get("settings", {}))


def replay(trials: Sequence[Trial], seconds: Sequence[float] | np.ndarray | None = None) -> list[Segment]:
    """Simulate recorded trials, each round separately, and in several segments where the search was interrupted.

    Work that an interruption discarded is neither recorded nor simulated. `seconds` are the durations of the trials
    (default: as recorded).
    """
    if seconds is None:
        seconds = [_seconds(trial) for trial in trials]
    trial_seconds = {trial.number: float(value) for trial, value in zip(trials, seconds, strict=True)}
    segments = []
    for part in _split_at_interruptions(trials):
        # One round of one-epoch trials on as many slots as were busy
        workers = _max_concurrency(part)
        workload = Workload((tuple(trial_seconds[trial.number] for trial in part),), 1, 1)
        recorded_seconds = max(map(_end, part)) - _start(part[0])
        simulated_seconds = simulate(workload, Cluster(workers)).wall_seconds
        segments.append(Segment(part[0].round, tuple(part), workers, recorded_seconds, simulated_seconds))
    return segments


def proportional_times(trials: Sequence[Trial], costs: np.ndarray) -> np.ndarray:
    """Predict the seconds of each trial as its epochs times its cost, at one rate that preserves the total time.

    `costs`, (N,), are the costs of the trials' candidates, such as multiply-adds.
    """
    work = np.asarray(costs, np.float64) * [trial.epochs for trial in trials]
    return work * sum(map(_seconds, trials)) / work.sum()


def residual_spread(trials: Sequence[Trial], costs: np.ndarray) -> list[float]:
    """Measure how far recorded times deviate from proportional ones: the standard deviation of the log ratio, by round.

    Each round has its own rate, as the load of a machine changes. `Cluster.stragglers` models this deviation.
    """
    spreads = []
    for round_index in sorted({trial.round for trial in trials}):
        indices = [i for i, trial in enumerate(trials) if trial.round == round_index]
        round_trials = [trials[i] for i in indices]
        predicted = proportional_times(round_trials, np.asarray(costs)[indices])
        recorded = [_seconds(trial) for trial in round_trials]
        spreads.append(float(np.std(np.log(recorded) - np.log(predicted))))
    return spreads


def _seconds(trial: Trial) -> float:
    assert trial.seconds is not None  # completed trials have a time
    return trial.seconds


def _end(trial: Trial) -> float:
    assert trial.finished is not None  # completed trials have an end
    return trial.finished


def _start(trial: Trial) -> float:
    return _end(trial) - _seconds(trial)


def _split_at_interruptions(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Split trials by round and at interruptions; each part is sorted by start."""
    parts: list[list[Trial]] = []
    latest_end = 0.0
    for trial in sorted(trials, key=lambda trial: (_start(trial), trial.number)):
        is_interrupted = _start(trial) - latest_end > _INTERRUPTION_SECONDS
        if not parts or parts[-1][0].round != trial.round or is_interrupted:
            parts.append([])
        parts[-1].append(trial)
        latest_end = max(latest_end, _end(trial))
    return parts


def _max_concurrency(trials: Sequence[Trial]) -> int:
    """Return the maximum number of trials that overlapped."""

    def runs_at(trial: Trial, time: float) -> bool:
        return _start(trial) <= time < _end(trial) - _MIN_OVERLAP * _seconds(trial)

    return max(sum(runs_at(other, _start(trial)) for other in trials) for trial in trials)
