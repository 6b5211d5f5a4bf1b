"""Progress of a search as a table: live on the terminal, and from a search's folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from tabulate import tabulate

from fbnetv3.nars.algorithm.rounds import SearchProgress, predictor_error, rank_trials
from fbnetv3.nars.algorithm.trial_store import DONE, FAILED, FINISHED, RUNNING, STOPPED_BY_FAILURES, WAITING
from fbnetv3.nars.report.search_record import SearchRecord, read_search_record
from fbnetv3.utils.text import format_duration

# Columns of the live table and their widths
_WIDTHS = {
    "round": 7,
    "epochs": 6,
    "done": 9,
    "failed": 6,
    "running": 7,
    "best": 9,
    "error": 8,
    "time left": 9,
}
_STAGES = {
    "pretraining": "pretraining the predictor on architecture statistics",
    "evolution": "searching for the best candidate within each budget",
    "done": "search finished",
}
_SECONDS_BETWEEN_LINES = 60.0  # between lines if the output is not a terminal
_MAX_FAILURES_SHOWN = 10
_CLEAR_LINE = "\x1b[K"


class ProgressTable:
    """Prints the progress of a search; call it with each `SearchProgress`.

    On a terminal the last line is updated as trials end. Elsewhere a line is printed when a round ends, and once a
    minute.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self._has_header = False
        self._last_line_time = 0.0
        self._stage = ""

    def __call__(self, progress: SearchProgress) -> None:
        """Print the progress."""
        if progress.message:
            self._print_line(progress.message)
        if progress.stage == "trials":
            self._show_trials(progress)
        elif progress.stage != self._stage:
            self._print_line(_STAGES[progress.stage])
        self._stage = progress.stage

    def _show_trials(self, progress: SearchProgress) -> None:
        if not self._has_header:
            self._print_line("  ".join(f"{name:>{width}}" for name, width in _WIDTHS.items()))
            self._has_header = True
        row = _format_row(progress)
        # On a terminal, the row of a running round is overwritten
        if progress.round_complete:
            self._print_line(row)
        elif self.is_terminal:
            self.stream.write(f"\r{row}{_CLEAR_LINE}")
            self.stream.flush()
        elif time.monotonic() - self._last_line_time > _SECONDS_BETWEEN_LINES:
            self._print_line(row)

    def _print_line(self, text: str) -> None:
        self.stream.write(f"\r{text}{_CLEAR_LINE}\n" if self.is_terminal else f"{text}\n")
        self.stream.flush()
        self._last_line_time = time.monotonic()


def _format_row(progress: SearchProgress) -> str:
    cells = (
        f"{progress.round + 1}/{progress.num_rounds}",
        f"{progress.epochs}",
        f"{progress.count(DONE)}/{len(progress.trials)}",
        f"{progress.count(FAILED)}",
        f"{progress.count(RUNNING)}",
        _format_number(progress.best_accuracy),
        _format_number(progress.predictor_error),
        "" if progress.seconds_left is None else format_duration(progress.seconds_left),
    )
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS.values(), strict=True))


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def describe_search(folder: Path) -> str:
    """Describe the state of the search in a folder, with a table of its rounds."""
    record = read_search_record(folder)
    state = "finished" if record.metadata.get(FINISHED) else "not finished"
    if record.metadata.get(STOPPED_BY_FAILURES):
        state = "stopped by failures"
    space = record.settings.get("space", "a search")
    lines = [
        f"{folder}: {space}, evaluator {record.settings.get('evaluator')}, {state}",
        "",
        _round_table(record),
    ]
    failed = [trial for trial in record.trials if trial.status == FAILED]
    lines += [f"trial {trial.number} failed: {trial.error}" for trial in failed[:_MAX_FAILURES_SHOWN]]
    if len(failed) > _MAX_FAILURES_SHOWN:
        lines.append(f"... and {len(failed) - _MAX_FAILURES_SHOWN} more failed trials")
    return "\n".join(lines)


def _round_table(record: SearchRecord) -> str:
    epoch = record.comparison_epoch
    statuses = (DONE, FAILED, RUNNING, WAITING)
    headers = ["round", "epochs", *statuses, f"best after epoch {epoch}", "predictor's error", "hours"]
    rows = []
    for number, trials in enumerate(record.rounds, 1):
        counts = [sum(trial.status == status for trial in trials) for status in statuses]
        ranked = rank_trials(trials, epoch)
        best = f"{ranked[0].accuracy(epoch):.4g} (trial {ranked[0].number})" if ranked else ""
        hours = sum(trial.seconds or 0 for trial in trials) / 3600
        error = _format_number(predictor_error(ranked, epoch))
        rows.append([number, trials[0].epochs, *counts, best, error, f"{hours:.2f}"])
    return tabulate(rows, headers, disable_numparse=True)
