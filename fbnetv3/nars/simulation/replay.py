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

from fbnetv3.nars.simulation.simulator import Cluster, Workload, simulate
from fbnetv3.nars.trials.trial_store import COMPLETED, TRIALS_FILE, Trial, TrialStore, TrialStoreError
from fbnetv3.utils.files import expand_path

# A gap of this many seconds without a trial is an interruption; training the predictor takes less
_INTERRUPTION_SECONDS = 30.0
# The end of a segment is recorded a moment late, so overlaps shorter than this fraction of its time do not count
_MIN_OVERLAP = 0.1


@dataclass(frozen=True)
class RecordedSegment:
    """A completed segment of a trial, and when it ran."""

    number: int
    trial: Trial
    epochs: int  # number of epochs that it trained
    seconds: float  # duration
    end: float  # seconds since 1970

    @property
    def start(self) -> float:
        """When it started, in seconds since 1970."""
        return self.end - self.seconds


@dataclass(frozen=True)
class RecordedSearch:
    """A search that was run: the segments that were completed, and its settings as stored."""

    segments: tuple[RecordedSegment, ...]  # by number
    settings: Mapping[str, Any]

    @property
    def candidates(self) -> np.ndarray:
        """The candidate of each segment, integers (segments, variables)."""
        return np.array([segment.trial.candidate for segment in self.segments])


@dataclass(frozen=True)
class ReplayedPeriod:
    """Segments of one round that ran without an interruption."""

    round: int  # from 0
    segments: tuple[RecordedSegment, ...]  # in the order in which they started
    workers: int  # maximum number of concurrent segments
    recorded_seconds: float  # from the start of the first segment to the end of the last one
    simulated_seconds: float  # the same in the simulation

    @property
    def error(self) -> float:
        """Relative error of the simulation."""
        return self.simulated_seconds / self.recorded_seconds - 1


def read_search(path: Path) -> RecordedSearch:
    """Read the completed segments of a search from its folder, or from an SQLite file of trials."""
    path = expand_path(path)
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
        segments = [segment for trial in store.trials() for segment in _completed_segments(trial)]
        if not segments:
            raise TrialStoreError(f"{store.file}: has no completed trials")
        segments.sort(key=lambda segment: segment.number)
        return RecordedSearch(tuple(segments), store.metadata().get("settings", {}))


def _completed_segments(trial: Trial) -> list[RecordedSegment]:
    recorded = []
    first_epoch = 0
    for segment in trial.segments:
        if segment.status == COMPLETED and segment.seconds and segment.ended:
            epochs = segment.epochs - first_epoch
            recorded.append(RecordedSegment(segment.number, trial, epochs, segment.seconds, segment.ended))
            first_epoch = segment.epochs
    return recorded


def replay(
    segments: Sequence[RecordedSegment], seconds: Sequence[float] | np.ndarray | None = None
) -> list[ReplayedPeriod]:
    """Simulate recorded segments, each round separately, and in several periods where the search was interrupted.

    Work that an interruption discarded is neither recorded nor simulated. `seconds` are the durations of the segments
    (default: as recorded).
    """
    if seconds is None:
        seconds = [segment.seconds for segment in segments]
    seconds_by_number = {
        segment.number: float(value) for segment, value in zip(segments, seconds, strict=True)
    }
    periods = []
    for period in _split_at_interruptions(segments):
        # One round of one-epoch trials on as many slots as were busy
        workers = _max_concurrency(period)
        workload = Workload((tuple(seconds_by_number[segment.number] for segment in period),), 1, 1)
        recorded_seconds = max(segment.end for segment in period) - period[0].start
        simulated_seconds = simulate(workload, Cluster(workers)).wall_seconds
        periods.append(
            ReplayedPeriod(
                period[0].trial.round, tuple(period), workers, recorded_seconds, simulated_seconds
            )
        )
    return periods


def proportional_times(segments: Sequence[RecordedSegment], costs: np.ndarray) -> np.ndarray:
    """Predict the seconds of each segment as its epochs times its cost, at one rate that preserves the total time.

    `costs`, (N,), are the costs of the segments' candidates, such as multiply-adds.
    """
    work = np.asarray(costs, np.float64) * [segment.epochs for segment in segments]
    return work * sum(segment.seconds for segment in segments) / work.sum()


def residual_spread(segments: Sequence[RecordedSegment], costs: np.ndarray) -> list[float]:
    """Measure how far recorded times deviate from proportional ones: the standard deviation of the log ratio, by round.

    Each round has its own rate, as the load of a machine changes. `Cluster.stragglers` models this deviation.
    """
    spreads = []
    rounds = np.array([segment.trial.round for segment in segments])
    for round_index in np.unique(rounds):
        indices = np.flatnonzero(rounds == round_index).tolist()
        in_round = [segments[index] for index in indices]
        predicted = proportional_times(in_round, np.asarray(costs)[indices])
        recorded = [segment.seconds for segment in in_round]
        spreads.append(float(np.std(np.log(recorded) - np.log(predicted))))
    return spreads


def _split_at_interruptions(segments: Sequence[RecordedSegment]) -> list[list[RecordedSegment]]:
    """Split segments by round and at interruptions; each part is sorted by start."""
    parts: list[list[RecordedSegment]] = []
    latest_end = 0.0
    for segment in sorted(segments, key=lambda segment: (segment.start, segment.number)):
        is_interrupted = segment.start - latest_end > _INTERRUPTION_SECONDS
        if not parts or parts[-1][0].trial.round != segment.trial.round or is_interrupted:
            parts.append([])
        parts[-1].append(segment)
        latest_end = max(latest_end, segment.end)
    return parts


def _max_concurrency(segments: Sequence[RecordedSegment]) -> int:
    """Return the maximum number of segments that overlapped."""

    def runs_at(segment: RecordedSegment, time: float) -> bool:
        return segment.start <= time < segment.end - _MIN_OVERLAP * segment.seconds

    return max(sum(runs_at(other, segment.start) for other in segments) for segment in segments)
