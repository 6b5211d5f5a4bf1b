"""A search as it goes on: a table on the terminal, a line a round; and the same of a folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tabulate import tabulate

from fbnetv3.nars.algorithm.rounds import Progress, predictor_error, ranked
from fbnetv3.nars.algorithm.trial_store import (
    DONE,
    FAILED,
    FINISHED,
    RUNNING,
    STOP_EPOCH,
    STOPPED,
    WAITING,
    Trial,
    TrialStore,
)
from fbnetv3.utils.text import format_duration

_COLUMNS = (
    ("round", 7),
    ("epochs", 6),
    ("done", 9),
    ("failed", 6),
    ("running", 7),
    ("best", 9),
    ("error", 8),
    ("left", 8),
)
# Seconds between two lines where there is no terminal to write over.
_PERIOD = 60.0


class LiveTable:
    """Shows the `Progress` of a search: call it with one after the other.

    On a terminal the last line of the table changes as trials end; elsewhere a line is written for each round that
    ends, and once a minute.

    Args:
        stream: where to; default: standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self._headed = False
        self._last = 0.0
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.message:
            self._line(progress.message)
        if progress.stage != "trials":
            if progress.stage != self._stage:
                self._line(
                    {"pretraining": "pretraining the predictor on free labels", "evolution": "evolution"}.get(
                        progress.stage, progress.stage
                    )
                )
            self._stage = progress.stage
            return
        self._stage = progress.stage
        if not self._headed:
            self._line("  ".join(f"{name:>{width}}" for name, width in _COLUMNS))
            self._headed = True
        row = _row(progress)
        if progress.whole:
            self._line(row)
        elif self.live:
            self.stream.write(f"\r{row}\x1b[K")
            self.stream.flush()
        elif time.monotonic() - self._last > _PERIOD:
            self._line(row)

    def _line(self, text: str) -> None:
        self.stream.write(f"\r{text}\x1b[K\n" if self.live else f"{text}\n")
        self.stream.flush()
        self._last = time.monotonic()


def _row(progress: Progress) -> str:
    cells = (
        f"{progress.round + 1}/{progress.rounds}",
        f"{progress.epochs}",
        f"{progress.count(DONE)}/{len(progress.trials)}",
        f"{progress.count(FAILED)}",
        f"{progress.count(RUNNING)}",
        _number(progress.best),
        _number(progress.error),
        "" if progress.seconds is None else format_duration(progress.seconds),
    )
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def describe(folder: Path) -> str:
    """How far the search in a folder is, as a table.

    Raises:
        TrialsError: there is none.
    """
    store = TrialStore(folder)
    try:
        trials, about, rounds = store.all(), store.about(), store.rounds()
    finally:
        store.close()
    settings = about.get("settings", {})
    state = "stopped by failures" if about.get(STOPPED) else "finished" if about.get(FINISHED) else "not finished"
    head = f"{folder}: {settings.get('space', 'a search')}, evaluator {settings.get('evaluator')}, {state}"
    failures = [f"trial {t.number} failed: {t.error}" for t in trials if t.status == FAILED]
    return "\n".join([head, "", round_table(trials, rounds, compared_at(trials, about)), *failures[:10]])


def compared_at(trials: Sequence[Trial], about: Mapping[str, Any]) -> int:
    """The epoch after which the accuracies of trials are compared, by what is kept about a search."""
    return about.get(STOP_EPOCH) or min((trial.epochs for trial in trials), default=1)


def round_table(trials: Sequence[Trial], rounds: int, epoch: int) -> str:
    """A line a round: how many trials are in which state, the best accuracy, and the predictor's error."""
    rows = []
    for number in range(rounds):
        here = [trial for trial in trials if trial.round == number]
        done = ranked(here, epoch)
        counts = [sum(t.status == status for t in here) for status in (DONE, FAILED, RUNNING, WAITING)]
        best = f"{done[0].accuracy(epoch):.4g} (trial {done[0].number})" if done else ""
        hours = sum(t.seconds or 0 for t in here) / 3600
        rows.append([number + 1, here[0].epochs, *counts, best, _number(predictor_error(done, epoch)), f"{hours:.2f}"])
    headers = ["round", "epochs", "done", "failed", "running", "waiting", f"best after epoch {epoch}"]
    return tabulate(rows, [*headers, "predictor's error", "hours"], disable_numparse=True)
