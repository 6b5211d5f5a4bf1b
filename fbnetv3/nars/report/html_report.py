"""HTML report of a search: one file with all figures inside, and the figures as PNG files."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.rounds import predictor_error, rank_trials
from fbnetv3.nars.algorithm.trial_store import FAILED
from fbnetv3.nars.report.report_figures import REPORT_FIGURES
from fbnetv3.nars.report.search_record import SearchRecord, read_search_record
from fbnetv3.utils.files import atomic_write, make_folder, write_text
from fbnetv3.utils.plotting import figure_png, new_figure

REPORT_FILE = "report.html"
FIGURES_FOLDER = "report"
_TEMPLATE = Path(__file__).with_name("search_report.html")


def write_report(folder: Path) -> Path:
    """Write `report.html`, and its figures to `report/`, in a search's folder.

    Before the search has finished, the report shows only the trials.

    Returns:
        The path of the HTML file.

    Raises:
        TrialStoreError: the folder contains no search, or its analysis is corrupt.
        UsageError: no trial has finished yet.
        OutputError: the report cannot be written.
    """
    record = read_search_record(folder)
    if not any(record.completed_rounds):
        raise UsageError(f"{folder}: no trials have finished yet; wait for the first one")
    figures = _write_figures(record, make_folder(folder / FIGURES_FOLDER))
    write_text(folder / REPORT_FILE, _render_page(record, figures))
    return folder / REPORT_FILE


@dataclass(frozen=True)
class _RenderedFigure:
    title: str
    caption: str
    png_base64: str


def _write_figures(record: SearchRecord, folder: Path) -> list[_RenderedFigure]:
    """Write the figures that the search has data for."""
    rendered = []
    for report_figure in REPORT_FIGURES:
        figure = new_figure()
        if not report_figure.draw(record, figure):
            continue
        # Both as a separate file and inside the page
        png = figure_png(figure)
        with atomic_write(folder / f"{report_figure.name}.png") as f:
            f.write(png)
        png_base64 = base64.b64encode(png).decode()
        rendered.append(_RenderedFigure(report_figure.title, report_figure.caption, png_base64))
    return rendered


def _render_page(record: SearchRecord, figures: list[_RenderedFigure]) -> str:
    from jinja2 import Template  # optional package

    epoch = record.comparison_epoch
    ranked = rank_trials(record.trials, epoch)
    recommendations = record.analysis.get("recommendations", [])
    # Values are escaped, because errors and settings may contain any text
    template = Template(_TEMPLATE.read_text(), autoescape=True)
    return template.render(
        space=record.settings.get("space", record.folder.name),
        num_completed=len(ranked),
        failed_trials=[trial for trial in record.trials if trial.status == FAILED],
        hours=sum(trial.seconds or 0 for trial in record.trials) / 3600,
        epoch=epoch,
        num_epochs=record.settings.get("epochs", "?"),
        best=ranked[0],
        recommendations=recommendations,
        columns=list(recommendations[0]["columns"]) if recommendations else [],
        scaled_networks=record.analysis.get("scaled_networks", []),
        rounds=_summarize_rounds(record),
        figures=figures,
        settings={name: json.dumps(value) for name, value in record.settings.items()},
        version=record.metadata.get("fbnetv3", ""),
    )


def _summarize_rounds(record: SearchRecord) -> list[dict[str, Any]]:
    """Summarize the completed trials of each round."""
    epoch = record.comparison_epoch
    return [
        {
            "num_trials": len(trials),
            "epochs": trials[0].epochs if trials else None,
            "best": max((trial.accuracy(epoch) for trial in trials), default=None),
            "error": predictor_error(trials, epoch),
        }
        for trials in record.completed_rounds
    ]
