"""Progress of a running search: one line for each trial that ends and, on a terminal, a bar below them."""

from __future__ import annotations

import math
import sys
from typing import TextIO

from tqdm import tqdm

from fbnetv3.nars.trials.progress import SearchProgress
from fbnetv3.nars.trials.trial_store import FAILED, RUNNING, Trial
from fbnetv3.utils.text import format_duration

# Columns and their widths
_WIDTHS = {
    "trial": 5,
    "phase": 8,
    "epochs": 7,
    "value": 9,
    "predicted": 18,
    "best so far": 17,
    "seconds": 8,
}
_STAGES = {
    "pretraining": "pretraining the predictor on architecture statistics",
    "evolution": "choosing a candidate for each budget",
    "done": "search finished",
}
_MAX_DECIMALS = 6
_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} epochs{postfix}"


class ProgressTable:
    """Prints the progress of a search; call it with each `SearchProgress`.

    A trial has a line when it ends, and another one if it is continued later. Its value is that after its last epoch,
    its prediction is the one made when it was proposed. On a terminal, a bar shows the epochs of all trials.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._has_header = False
        self._stage = ""

    def __call__(self, progress: SearchProgress) -> None:
        """Print what has happened."""
        if progress.stage == "trials" and not self._has_header:
            self._print_header(progress)
        if progress.message:
            self._print_line(progress.message)
        if progress.stage != self._stage and progress.stage in _STAGES:
            self._close_bar()
            self._print_line(_STAGES[progress.stage])
        elif progress.ended is not None and progress.ended.status != FAILED:
            self._print_line(_format_trial(progress.ended, progress))
        if progress.stage == "trials":
            self._update_bar(progress)
        self._stage = progress.stage

    def _print_header(self, progress: SearchProgress) -> None:
        if progress.epochs_done:
            epochs = f"{progress.epochs_done} of {progress.epochs_planned} epochs"
            self._print_line(f"resuming a search with {len(progress.trials)} trials, {epochs}")
        self._print_line(_format_row(tuple(_WIDTHS)))
        self._has_header = True

    def _print_line(self, text: str) -> None:
        tqdm.write(text, file=self.stream)
        self.stream.flush()

    def _update_bar(self, progress: SearchProgress) -> None:
        if not self.stream.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(file=self.stream, bar_format=_BAR_FORMAT, dynamic_ncols=True, leave=False)
        self._bar.total = max(progress.epochs_planned, progress.epochs_done)
        self._bar.n = progress.epochs_done
        counts = [f"{count} {status}" for status in (RUNNING, FAILED) if (count := progress.count(status))]
        if progress.seconds_left is not None:
            counts.append(f"{format_duration(progress.seconds_left)} left")
        self._bar.set_postfix_str(", ".join(counts))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _format_row(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS.values(), strict=True))


def _format_trial(trial: Trial, progress: SearchProgress) -> str:
    best = progress.best
    return _format_row(
        (
            str(trial.number),
            trial.phase,
            f"{len(trial.curve)}/{progress.full_epochs}",
            f"{trial.curve[-1]:.5g}",
            format_prediction(trial.predicted, trial.predicted_std),
            "" if best is None else f"{best.value(progress.full_epochs):.5g} (trial {best.number})",
            f"{trial.segments[-1].seconds or 0:.1f}",
        )
    )


def format_prediction(mean: float | None, std: float | None) -> str:
    """Format a prediction as "77.1 ± 0.4": two digits of the deviation, and as many decimals of the mean."""
    if mean is None:
        return ""
    if not std:
        return f"{mean:.5g}"
    decimals = max(0, 1 - math.floor(math.log10(std)))
    if decimals > _MAX_DECIMALS:
        return f"{mean:.4g} ± {std:.2g}"
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"
