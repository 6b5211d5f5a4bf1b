"""State of a running or finished search, as text."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from fbnetv3.nars.report.progress_table import format_prediction
from fbnetv3.nars.report.saved_search import SavedSearch, load
from fbnetv3.nars.trials.progress import count_epochs, prediction_error, rank_trials
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, RUNNING, WAITING, Trial
from fbnetv3.utils.text import format_duration

_MAX_FAILURES_SHOWN = 10
_RECENT_SEGMENTS = 50  # whose duration estimates the time left


def describe_search(folder: str | os.PathLike) -> str:
    """Describe the search in a folder: a table of its phases (or rounds), the best trial, and the failed ones."""
    search = load(folder)
    lines = [
        f"{folder}: {search.name}, evaluator {search.settings.get('evaluator')}, {search.state}",
        summarize_epochs(search),
        "",
        _group_table(search),
    ]
    if search.ranked:
        lines += ["", *_describe_best(search)]
    failed = [trial for trial in search.trials if trial.status == FAILED]
    lines += [f"trial {trial.number} failed: {trial.error}" for trial in failed[:_MAX_FAILURES_SHOWN]]
    if len(failed) > _MAX_FAILURES_SHOWN:
        lines.append(f"... and {len(failed) - _MAX_FAILURES_SHOWN} more failed trials")
    return "\n".join(lines)


def summarize_epochs(search: SavedSearch) -> str:
    """Return a line with the epochs spent and, while the search runs, an estimate of the time left."""
    text = f"{search.epochs_done} of {search.epochs_planned} epochs"
    seconds = None if search.is_finished else estimate_seconds_left(search)
    return text if seconds is None else f"{text}, {format_duration(seconds)} left"


def estimate_seconds_left(search: SavedSearch) -> float | None:
    """Estimate the time until the last trial ends, from the latest trials; None before the first has ended."""
    durations = []
    for trial in search.trials:
        start = 0
        for segment in trial.segments:
            if segment.status == COMPLETED and segment.seconds is not None:
                durations.append((segment.ended or 0.0, segment.seconds / (segment.epochs - start)))
                start = segment.epochs if search.continues else 0
    if not durations:
        return None
    per_epoch = float(np.mean([seconds for _, seconds in sorted(durations)[-_RECENT_SEGMENTS:]]))
    epochs_left = max(0, search.epochs_planned - search.epochs_done)
    return per_epoch * epochs_left / int(search.settings.get("workers", 1))


def _group_table(search: SavedSearch) -> str:
    epoch = search.comparison_epoch
    statuses = (COMPLETED, FAILED, RUNNING, WAITING)
    kind = "round" if search.is_paper else "phase"
    headers = [
        kind,
        "trials",
        *statuses,
        "epochs",
        f"best after epoch {epoch}",
        "prediction error",
        "hours",
    ]
    rows = []
    for name, trials in search.groups.items():
        counts = [sum(trial.status == status for trial in trials) for status in statuses]
        rows.append(
            [
                name.removeprefix("round "),
                len(trials),
                *counts,
                count_epochs(trials, search.continues),
                describe_best_value(trials, epoch, search.sign),
                _format_number(prediction_error(trials, epoch)),
                f"{sum(trial.seconds for trial in trials) / 3600:.2f}",
            ]
        )
    return tabulate(rows, headers, disable_numparse=True)


def describe_best_value(trials: Sequence[Trial], epoch: int, sign: float) -> str:
    """Return the best value after an epoch and its trial, or an empty string if no trial has reached it."""
    ranked = rank_trials(trials, epoch, sign)
    return f"{ranked[0].value(epoch):.5g} (trial {ranked[0].number})" if ranked else ""


def _describe_best(search: SavedSearch) -> list[str]:
    best = search.best
    prediction = format_prediction(best.predicted, best.predicted_std)
    predicted = f", predicted {prediction}" if prediction else ""
    values = ", ".join(f"{name} {value}" for name, value in best.values.items())
    return [
        f"best: trial {best.number}, {best.value(search.comparison_epoch):.5g}{predicted}",
        f"  {values}",
    ]


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
