"""The trials of a search in an SQLite file, written when they are proposed and whenever one starts or ends.

If a search is killed, finished trials are kept and interrupted ones are rerun.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import OutputError, UserError
from fbnetv3.utils.text import one_line

TRIALS_FILE = "trials.sqlite"
ANALYSIS_FILE = "analysis.json"

# Status of a trial
WAITING = "waiting"
RUNNING = "running"
DONE = "done"
FAILED = "failed"

# Keys of a search's metadata
STOPPED_BY_FAILURES = "stopped"  # whether too many failures ended it
STOPPING_EPOCH = "stop_epoch"  # number of epochs of the trials after the first round
FINISHED = "finished"  # when it finished, in seconds since 1970

_APPLICATION_ID = 0x4E415253  # "NARS"
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, candidate TEXT NOT NULL, epochs INTEGER NOT NULL,
    predicted REAL, status TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, curve TEXT, error TEXT,
    seconds REAL, finished REAL
);
"""


class TrialStoreError(UserError):
    """A trial file that is missing, corrupt, from another version, or from a different search."""


@dataclass(frozen=True)
class Trial:
    """One candidate that a search evaluates."""

    number: int  # from 0, in the order of proposal
    round: int  # from 0
    candidate: np.ndarray  # integers (variables,)
    epochs: int  # epochs for which it is evaluated
    predicted: float | None  # accuracy as predicted when it was proposed; None in the first round
    status: str
    attempts: int  # number of attempts that have ended; 0 again when a failed trial is requeued
    curve: tuple[float, ...] | None  # accuracy after each epoch, once it is done
    error: str | None  # why the last attempt failed
    seconds: float | None  # duration of the last attempt
    finished: float | None  # when the last attempt ended, in seconds since 1970

    def accuracy(self, epoch: int) -> float:
        """Return the accuracy after `epoch` epochs; the trial must be done."""
        assert self.curve is not None
        return self.curve[epoch - 1]


_COLUMNS = [field.name for field in fields(Trial)]


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

    def add_round(
        self,
        round_index: int,
        candidates: np.ndarray,
        epochs: int,
        predicted: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Add the trials of a round: candidates, integers (N, variables), and their predicted accuracies, (N,)."""
        predictions = (
            [None] * len(candidates) if predicted is None else [float(value) for value in predicted]
        )
        # Trials are numbered across rounds
        first = len(self.trials())
        rows = [
            (first + i, round_index, json.dumps(candidate.tolist()), epochs, predictions[i], WAITING)
            for i, candidate in enumerate(candidates)
        ]
        columns = "number, round, candidate, epochs, predicted, status"
        with self._transaction():
            self._connection.executemany(f"INSERT INTO trials ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        return self._query_trials("")

    def num_rounds(self) -> int:
        """Return the number of rounds proposed so far."""
        with self._as_user_errors():
            return self._query_value("SELECT coalesce(max(round) + 1, 0) FROM trials")

    def start(self, number: int) -> Trial:
        """Record that a trial is running."""
        return self._update(number, status=RUNNING)

    def finish(self, number: int, curve: Sequence[float], seconds: float) -> Trial:
        """Record that a trial is done."""
        accuracies = json.dumps([float(accuracy) for accuracy in curve])
        return self._end_attempt(number, seconds, status=DONE, error=None, curve=accuracies)

    def fail(self, number: int, error: str, seconds: float, retry: bool) -> Trial:
        """Record that an attempt failed, and whether the trial will be retried."""
        return self._end_attempt(number, seconds, status=WAITING if retry else FAILED, error=error)

    def requeue(self, include_failed: bool = False) -> None:
        """Reset running trials to waiting; with `include_failed`, also failed ones of the last round.

        Failures of earlier rounds stay, because later rounds were proposed without them.
        """
        with self._transaction():
            self._connection.execute("UPDATE trials SET status = ? WHERE status = ?", (WAITING, RUNNING))
            if include_failed:
                self._connection.execute(
                    "UPDATE trials SET status = ?, attempts = 0 "
                    "WHERE status = ? AND round = (SELECT max(round) FROM trials)",
                    (WAITING, FAILED),
                )

    def _end_attempt(self, number: int, seconds: float, **values: Any) -> Trial:
        [trial] = self._query_trials("WHERE number = ?", number)
        return self._update(
            number, attempts=trial.attempts + 1, seconds=seconds, finished=time.time(), **values
        )

    def _update(self, number: int, **values: Any) -> Trial:
        assignments = ", ".join(f"{column} = ?" for column in values)
        with self._transaction():
            self._connection.execute(
                f"UPDATE trials SET {assignments} WHERE number = ?", (*values.values(), number)
            )
        return self._query_trials("WHERE number = ?", number)[0]

    def _query_trials(self, condition: str, *parameters: int) -> list[Trial]:
        with self._as_user_errors():
            statement = f"SELECT {', '.join(_COLUMNS)} FROM trials {condition} ORDER BY number"
            rows = self._connection.execute(statement, parameters).fetchall()
            return [_trial_from_row(row) for row in rows]

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


def _trial_from_row(row: tuple[Any, ...]) -> Trial:
    values = dict(zip(_COLUMNS, row, strict=True))
    # Arrays are stored as JSON
    values["candidate"] = np.array(json.loads(values["candidate"]), np.int64)
    if values["curve"] is not None:
        values["curve"] = tuple(json.loads(values["curve"]))
    return Trial(**values)
