"""Rewrite the report of a running search until it finishes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.saved_search import SavedSearch, load
from fbnetv3.nars.report.search_status import summarize_epochs
from fbnetv3.nars.trials.trial_store import FAILED, FINISHED, STOPPED_BY_FAILURES

_ANALYSIS_SECONDS = 60.0  # to wait for the analysis of a search that has finished


def watch_search(
    folder: str | os.PathLike,
    seconds: int = 10,
    show: Callable[[str], object] = print,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Write the report of a search every few seconds until the search finishes or stops; return the page's path.

    Args:
        folder: output folder of the search.
        seconds: time between two versions of the page, which browsers reload as often.
        show: called with a line of text whenever something has changed.
        sleep: called with the time to wait.
    """
    shown = ""
    while True:
        search = load(folder)
        is_last = _has_ended(search)
        if (line := _describe(search)) != shown:
            show(line)
            shown = line
        if search.ranked or is_last:
            page = write_report(folder, None if is_last else seconds)
            if is_last:
                show(f"report: {page}")
                return page
        sleep(seconds)


def _has_ended(search: SavedSearch) -> bool:
    """Return whether the search and its analysis, which begins when it has finished, will not change any more."""
    if search.metadata.get(STOPPED_BY_FAILURES):
        return True
    finished = search.metadata.get(FINISHED)
    if not finished:
        return False
    return bool(search.analysis) or time.time() - finished > _ANALYSIS_SECONDS


def _describe(search: SavedSearch) -> str:
    parts = [f"{search.state}: {summarize_epochs(search)}"]
    if search.ranked:
        parts.append(f"best {search.best.value(search.comparison_epoch):.5g} (trial {search.best.number})")
    num_failed = sum(trial.status == FAILED for trial in search.trials)
    if num_failed:
        parts.append(f"{num_failed} failed")
    return "; ".join(parts)
