"""The trials of a search in an SQLite file, written when they are proposed and whenever a part of one starts or ends.

A trial trains a candidate in one or more segments: a segment continues the training to a number of epochs. If a search
is killed, the results of segments that have ended are kept, and interrupted segments are rerun.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fbnetv3.errors import OutputError, UserError
from fbnetv3.utils.text import one_line

TRIALS_FILE = "trials.sqlite"
ANALYSIS_FILE = "analysis.json"

# Status of a segment, and of a trial, which is that of its last segment
WAITING = "waiting"
RUNNING = "running"
COMPLETED = "completed"
FAILED = "failed"

# Why a trial was proposed
GIVEN = "given"  # by the user
INITIAL = "initial"  # quasi-random
PROPOSED = "proposed"  # by the predictor
FINAL = "final"  # the best predicted for a budget, to verify it

# Keys of a search's metadata
SPACE = "space"  # definition of the space
CONFIGURATION = "configuration"  # all settings, and the evaluator
EPOCHS_PLANNED = "epochs_planned"
CONTINUES = "continues"  # whether evaluators continue trials from where they stopped
OUTPUTS = "outputs"  # names of recommendations and of scaled networks
STOPPED_BY_FAILURES = "stopped_by_failures"
FINISHED = "finished"  # when it finished, in seconds since 1970

_APPLICATION_ID = 0x4E415253  # "NARS"
_SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY, phase TEXT NOT NULL, round INTEGER NOT NULL, budget TEXT, candidate TEXT NOT NULL,
    "values" TEXT NOT NULL, predicted REAL, predicted_std REAL, curve TEXT, objectives TEXT
);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES trials(number), epochs INTEGER NOT NULL,
    status TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, error TEXT, seconds REAL, ended REAL, state TEXT
);
"""
_SEGMENT_COLUMNS = ("number", "trial", "epochs", "status", "attempts", "error", "seconds", "ended", "state")


Decoder = Callable[[np.ndarray], Mapping[str, Any]]
"""Maps a candidate, integers (variables,), to values by variable name."""


class TrialStoreError(UserError):
    """A trial file that is missing, corrupt, from another version, or from a different search."""


@dataclass(frozen=True)
class Segment:
    """A part of a trial: training from where the trial is to a number of epochs."""

    number: int  # from 0, in the order of proposal
    trial: int  # number of the trial
    epochs: int  # epochs of the trial at the end of the segment
    status: str
    attempts: int  # number of attempts that have ended; 0 again when a failed segment is requeued
    error: str | None  # why the last attempt failed
    seconds: float | None  # duration of the last attempt
    ended: float | None  # when the last attempt ended, in seconds since 1970
    state: Mapping[str, Any]  # what the next proposal starts from

    @property
    def has_ended(self) -> bool:
        """Whether it was completed or has failed in all attempts."""
        return self.status in (COMPLETED, FAILED)


@dataclass(frozen=True)
class Trial:
    """A candidate that a search evaluates."""

    number: int  # from 0, in the order of proposal
    phase: str  # why it was proposed: GIVEN, INITIAL, PROPOSED or FINAL
    round: int  # round of Algorithm 1, from 0; 0 for the sequential search
    budget: str | None  # in the phase FINAL, the name of the budget for which it is predicted to be best
    candidate: np.ndarray  # integers (variables,)
    values: Mapping[str, Any]  # values of the active variables
    predicted: float | None  # value after the last epoch as predicted when it was proposed
    predicted_std: float | None  # standard deviation of the prediction
    curve: tuple[float, ...]  # value after each epoch so far
    segments: tuple[Segment, ...]  # in the order of proposal, at least one
    objectives: Mapping[str, float] = field(default_factory=dict)  # those after the first, by name

    def __repr__(self) -> str:
        value = f", value {self.curve[-1]:.6g} after epoch {len(self.curve)}" if self.curve else ""
        return f"Trial({self.number}, {self.phase}, {self.status}{value})"

    @property
    def epochs(self) -> int:
        """Epochs for which it was trained or is being trained."""
        return self.segments[-1].epochs

    @property
    def status(self) -> str:
        """Status of the last segment."""
        return self.segments[-1].status

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, if it did."""
        return self.segments[-1].error

    @property
    def seconds(self) -> float:
        """Duration of the last attempts at its segments, in all."""
        return sum(segment.seconds or 0.0 for segment in self.segments)

    def value(self, epoch: int) -> float:
        """Return the value after an epoch that the trial has reached."""
        return self.curve[epoch - 1]


@dataclass(frozen=True)
class Proposal:
    """What to run next: a new candidate, or more epochs of an earlier trial."""

    epochs: int  # epochs of the trial at the end of the segment
    candidate: np.ndarray | None = None  # integers (variables,); None to continue a trial
    trial: int | None = None  # number of the trial to continue
    phase: str = PROPOSED
    round: int = 0
    budget: str | None = None
    predicted: float | None = None
    predicted_std: float | None = None
    state: Mapping[str, Any] = field(default_factory=dict)  # what the next proposal starts from


class TrialStore:
    """The trials and the metadata of the search in a folder; with `create`, a missing file is created."""

    def __init__(self, folder: Path, create: bool = False) -> None:
        self.folder = folder
        self.file = folder / TRIALS_FILE
        if not self.file.exists() and not create:
            raise TrialStoreError(f"{folder}: contains no search (no {TRIALS_FILE})")
        with self._as_user_errors(), contextlib.ExitStack() as on_error:
            self._connection = sqlite3.connect(self.file, isolation_level=None, timeout=10)
            on_error.callback(self._connection.close)
            self._open_schema(create)
            on_error.pop_all()

    def _open_schema(self, create: bool) -> None:
        """Write the schema into a new file, or check that of an existing one."""
        if create and not self._query_value("SELECT count(*) FROM sqlite_master"):
            self._connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; "
                f"PRAGMA application_id = {_APPLICATION_ID}; COMMIT"
            )
        if self._query_value("PRAGMA application_id") != _APPLICATION_ID:
            raise TrialStoreError(f"{self.file}: is not a file of search trials")
        version = self._query_value("PRAGMA user_version")
        if version != _SCHEMA_VERSION:
            raise TrialStoreError(
                f"{self.file}: has schema version {version}, but this fbnetv3 reads version {_SCHEMA_VERSION}: "
                "use the fbnetv3 that wrote it, or choose a different folder"
            )

    def trial_folder(self, number: int) -> Path:
        """Return the folder for the files of a trial's evaluation."""
        return self.folder / "trials" / f"{number:05d}"

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the search."""
        with self._as_user_errors():
            rows = self._connection.execute("SELECT key, value FROM metadata")
            return {key: json.loads(value) for key, value in rows}

    def update_metadata(self, values: Mapping[str, Any]) -> None:
        """Set some keys of the metadata; the others keep their values."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO metadata VALUES (?, ?)", rows)

    def add(self, proposals: Sequence[Proposal], decode: Decoder) -> list[Segment]:
        """Add proposals as segments that wait, and new candidates as trials; `decode` returns their values by name."""
        added = []
        with self._transaction():
            for proposal in proposals:
                trial = proposal.trial
                if proposal.candidate is not None:
                    trial = self._query_value("SELECT count(*) FROM trials")
                    values = json.dumps(decode(proposal.candidate), default=str)
                    candidate = json.dumps(proposal.candidate.tolist())
                    prediction = (proposal.predicted, proposal.predicted_std)
                    reason = (proposal.phase, proposal.round, proposal.budget)
                    self._insert("trials", trial, *reason, candidate, values, *prediction, None, None)
                number = self._query_value("SELECT count(*) FROM segments")
                state = json.dumps(proposal.state)
                self._insert(
                    "segments", number, trial, proposal.epochs, WAITING, 0, None, None, None, state
                )
                added.append(number)
        return [self._read_segment(number) for number in added]

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        with self._as_user_errors():
            rows = self._connection.execute("SELECT * FROM trials ORDER BY number").fetchall()
            segments: dict[int, list[Segment]] = {}
            for segment in self.segments():
                segments.setdefault(segment.trial, []).append(segment)
            return [_trial_from_row(row, segments[row[0]]) for row in rows]

    def trial(self, number: int) -> Trial:
        """Return one trial."""
        with self._as_user_errors():
            statement = "SELECT * FROM trials WHERE number = ?"
            (row,) = self._connection.execute(statement, (number,)).fetchall()
            return _trial_from_row(row, self._query_segments("WHERE trial = ?", number))

    def segments(self) -> list[Segment]:
        """Return all segments, by number."""
        return self._query_segments("")

    def start(self, number: int) -> Segment:
        """Record that a segment is running."""
        return self._update(number, status=RUNNING)

    def complete(
        self,
        number: int,
        curve: Sequence[float],
        seconds: float,
        objectives: Mapping[str, float] | None = None,
    ) -> Segment:
        """Record that a segment is completed: the values after each epoch so far, and of objectives after the first."""
        values = json.dumps([float(value) for value in curve])
        trial = self._read_segment(number).trial
        with self._transaction():
            self._connection.execute(
                "UPDATE trials SET curve = ?, objectives = ? WHERE number = ?",
                (values, json.dumps(dict(objectives or {})), trial),
            )
            self._end_attempt(number, seconds, status=COMPLETED, error=None)
        return self._read_segment(number)

    def fail(self, number: int, error: str, seconds: float, retry: bool) -> Segment:
        """Record that an attempt failed, and whether the segment will be retried."""
        with self._transaction():
            self._end_attempt(number, seconds, status=WAITING if retry else FAILED, error=error)
        return self._read_segment(number)

    def requeue(self, include_failed: bool = False) -> None:
        """Reset running segments to waiting, and with `include_failed` also those that failed."""
        with self._transaction():
            self._connection.execute("UPDATE segments SET status = ? WHERE status = ?", (WAITING, RUNNING))
            if include_failed:
                self._connection.execute(
                    "UPDATE segments SET status = ?, attempts = 0 WHERE status = ?", (WAITING, FAILED)
                )

    def _insert(self, table: str, *values: Any) -> None:
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)

    def _end_attempt(self, number: int, seconds: float, status: str, error: str | None) -> None:
        self._connection.execute(
            "UPDATE segments SET status = ?, error = ?, seconds = ?, ended = ?, attempts = attempts + 1 "
            "WHERE number = ?",
            (status, error, seconds, time.time(), number),
        )

    def _update(self, number: int, status: str) -> Segment:
        with self._transaction():
            self._connection.execute("UPDATE segments SET status = ? WHERE number = ?", (status, number))
        return self._read_segment(number)

    def _read_segment(self, number: int) -> Segment:
        (segment,) = self._query_segments("WHERE number = ?", number)
        return segment

    def _query_segments(self, condition: str, *parameters: int) -> list[Segment]:
        with self._as_user_errors():
            statement = f"SELECT {', '.join(_SEGMENT_COLUMNS)} FROM segments {condition} ORDER BY number"
            rows = self._connection.execute(statement, parameters).fetchall()
            return [_segment_from_row(row) for row in rows]

    def _query_value(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._as_user_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _as_user_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into errors that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                advice = f"{error}: free some disk space, then resume; finished trials are kept"
            elif "locked" in str(error):
                advice = "is locked by another program: stop that program, then resume"
            else:
                advice = f"cannot be read or written: {error}"
            raise OutputError(f"{self.file}: {advice}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            reason = one_line(error, 200)  # SQLite quotes the statement that it cannot parse
            raise TrialStoreError(
                f"{self.file}: is corrupt, or not a file of search trials ({reason})"
            ) from None


def _segment_from_row(row: tuple[Any, ...]) -> Segment:
    values = dict(zip(_SEGMENT_COLUMNS, row, strict=True))
    return Segment(**{**values, "state": _parse_state(values["state"])})


@functools.lru_cache(maxsize=2048)  # all states are read again with every new segment
def _parse_state(text: str) -> Mapping[str, Any]:
    return MappingProxyType(dict(json.loads(text)))


def _trial_from_row(row: tuple[Any, ...], segments: Sequence[Segment]) -> Trial:
    number, phase, round_, budget, candidate, values, predicted, predicted_std, curve, objectives = row
    return Trial(
        number,
        phase,
        round_,
        budget,
        # Arrays are stored as JSON
        np.array(json.loads(candidate), np.int64),
        json.loads(values),
        predicted,
        predicted_std,
        tuple(json.loads(curve or "[]")),
        tuple(segments),
        json.loads(objectives or "{}"),
    )
