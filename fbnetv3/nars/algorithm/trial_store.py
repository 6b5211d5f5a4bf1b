"""The trials of a search in an SQLite file: written when they are proposed, and again as each of them ends.

Whatever kills a search, what has ended is kept, and what was running is run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import OutputError, UsageError, UserError

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
FILE = "trials.sqlite"
ANALYSIS = "analysis.json"
# What is kept about a search: that too many failures have ended it; how far its later trials go; when it was done.
STOPPED, STOP_EPOCH, FINISHED = "stopped", "stop_epoch", "finished"
_LOCK = "lock"
# Of the tables below; a file with another number is another version's.
_VERSION = 1
_APPLICATION = 0x4E415253  # "NARS"
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trials (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, candidate TEXT NOT NULL, epochs INTEGER NOT NULL,
    predicted REAL, status TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, curve TEXT, error TEXT,
    seconds REAL, finished REAL
);
"""


class TrialsError(UserError):
    """A file of trials that is damaged, foreign, of another version, or of another search."""


@dataclass(frozen=True)
class Trial:
    """One evaluation of a candidate.

    Attributes:
        number: from 0, in the order in which they were proposed.
        round: from 0.
        candidate: integers (variables,).
        epochs: how far it is evaluated.
        predicted: what the predictor said when it was proposed; None in the first round.
        status: waiting, running, done or failed.
        attempts: evaluations that ended, well or not.
        curve: its accuracy after each epoch, if it is done.
        error: why it failed, or its last attempt did.
        seconds: what its last attempt took.
        finished: when it ended, in seconds since 1970.
    """

    number: int
    round: int
    candidate: np.ndarray
    epochs: int
    predicted: float | None
    status: str
    attempts: int
    curve: tuple[float, ...] | None
    error: str | None
    seconds: float | None
    finished: float | None

    def accuracy(self, epoch: int) -> float:
        """Its accuracy after so many epochs."""
        assert self.curve is not None  # it is done
        return self.curve[epoch - 1]


class TrialStore:
    """The trials in a folder.

    Args:
        folder: of the search.
        create: make the file if it is not there.

    Raises:
        TrialsError: no trials are there, or the file is none of ours or of another version.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, create: bool = False) -> None:
        self.folder, self.file = folder, folder / FILE
        if not self.file.exists() and not create:
            raise TrialsError(f"{folder}: holds no search (there is no {FILE})")
        with self._explained():
            self._connection = sqlite3.connect(self.file, isolation_level=None, timeout=10)
            version, application = (self._one(f"PRAGMA {name}") for name in ("user_version", "application_id"))
            tables = self._one("SELECT count(*) FROM sqlite_master")
            if not tables and create:
                self._connection.executescript(
                    f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; PRAGMA application_id = {_APPLICATION}; COMMIT"
                )
            elif application != _APPLICATION:
                raise TrialsError(f"{self.file}: is no file of a search's trials")
            elif version != _VERSION:
                raise TrialsError(
                    f"{self.file}: is of version {version}, this program reads version {_VERSION}: "
                    "use the fbnetv3 that made it, or another folder"
                )

    def close(self) -> None:
        """Close the file; what has been written stays."""
        self._connection.close()

    def about(self) -> dict[str, Any]:
        """What was kept about the search."""
        with self._explained():
            return {key: json.loads(value) for key, value in self._connection.execute("SELECT key, value FROM about")}

    def set_about(self, values: Mapping[str, Any]) -> None:
        """Keep facts about the search, beside those that are there."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._explained(), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def add_round(
        self, number: int, candidates: np.ndarray, epochs: int, predicted: Sequence[float] | np.ndarray | None = None
    ) -> None:
        """Add the trials of a round, all of them or none.

        Args:
            number: of the round.
            candidates: integers (N, variables).
            epochs: how far each is evaluated.
            predicted: what is expected of each, (N,).
        """
        first = len(self.all())
        expected = [None] * len(candidates) if predicted is None else [float(value) for value in predicted]
        rows = [
            (first + i, number, json.dumps(candidate.tolist()), epochs, expected[i], WAITING)
            for i, candidate in enumerate(candidates)
        ]
        with self._explained(), self._transaction():
            self._connection.executemany(
                "INSERT INTO trials (number, round, candidate, epochs, predicted, status) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )

    def all(self, round: int | None = None) -> list[Trial]:
        """The trials by number, of one round or of all."""
        where, values = ("", ()) if round is None else ("WHERE round = ?", (round,))
        columns = ", ".join(Trial.__dataclass_fields__)
        with self._explained():
            rows = self._connection.execute(f"SELECT {columns} FROM trials {where} ORDER BY number", values).fetchall()
            return [_trial(row) for row in rows]

    def rounds(self) -> int:
        """How many rounds have been proposed."""
        with self._explained():
            return self._one("SELECT coalesce(max(round) + 1, 0) FROM trials")

    def start(self, number: int) -> None:
        """Note that a trial runs."""
        self._set(number, status=RUNNING)

    def finish(self, number: int, curve: Sequence[float], seconds: float) -> None:
        """Note that a trial is done."""
        values = json.dumps([float(value) for value in curve])
        self._set(number, status=DONE, curve=values, error=None, seconds=seconds, finished=time.time(), ended=True)

    def fail(self, number: int, error: str, seconds: float, again: bool) -> None:
        """Note that an attempt failed, and whether there will be another."""
        status = WAITING if again else FAILED
        self._set(number, status=status, error=error, seconds=seconds, finished=time.time(), ended=True)

    def release(self, failed: bool = False) -> None:
        """Let what was running when a search ended run again; and what has failed of the last round, all attempts."""
        with self._explained(), self._transaction():
            self._connection.execute("UPDATE trials SET status = ? WHERE status = ?", (WAITING, RUNNING))
            if failed:
                self._connection.execute(
                    "UPDATE trials SET status = ?, attempts = 0 "
                    "WHERE status = ? AND round = (SELECT max(round) FROM trials)",
                    (WAITING, FAILED),
                )

    def _set(self, number: int, ended: bool = False, **values: Any) -> None:
        columns = ", ".join(f"{name} = ?" for name in values) + (", attempts = attempts + 1" if ended else "")
        with self._explained(), self._transaction():
            self._connection.execute(f"UPDATE trials SET {columns} WHERE number = ?", (*values.values(), number))

    def _one(self, statement: str) -> Any:
        return self._connection.execute(statement).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's complaints as errors that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise OutputError(
                    f"{self.file}: {error}: free some space, then resume; what has ended before is kept"
                ) from None
            if "locked" in str(error):
                raise OutputError(f"{self.file}: another program holds it locked: end it, then resume") from None
            raise OutputError(f"{self.file}: cannot be written ({error})") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())[:200]  # SQLite quotes the statement that it does not understand
            raise TrialsError(f"{self.file}: is damaged, or no file of a search's trials ({reason})") from None


def _trial(row: tuple[Any, ...]) -> Trial:
    values = dict(zip(Trial.__dataclass_fields__, row, strict=True))
    values["candidate"] = np.array(json.loads(values["candidate"]), np.int64)
    if values["curve"] is not None:
        values["curve"] = tuple(json.loads(values["curve"]))
    return Trial(**values)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder for this process's search; the lock ends with the process, however it ends.

    Raises:
        UsageError: another process's search runs there.
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): choose another folder") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(file, 32).decode(errors="replace").strip()
            raise UsageError(
                f"{folder}: another search runs there (process {owner}): wait for it, or choose another folder"
            ) from None
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(file)
