"""HTML report of a search: one file with all figures inside, and the figures as PNG files."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.rounds import predictor_error, rank_trials
from fbnetv3.nars.algorithm.trial_store import FAILED, FINISHED
from fbnetv3.nars.report.report_figures import REPORT_FIGURES
from fbnetv3.nars.report.search_record import SearchRecord, read_search_record
from fbnetv3.utils.files import make_folder, write_text
from fbnetv3.utils.plotting import new_figure, save_figure

_TEMPLATE = Path(__file__).with_name("search_report.html")


def write_report(folder: Path) -> Path:
    """Write `report.html`, and its figures to `report/`, in a search's folder; return the path of the page.

    Without `analysis.json` (see `save_analysis`), the report shows only the trials.

    Raises:
        UsageError: no trial has finished yet.
    """
    record = read_search_record(folder)
    if not any(record.completed_trials_by_round):
        raise UsageError(f"{folder}: no trials have finished yet; wait for the first one")
    figures = {}
    for name, draw in REPORT_FIGURES.items():
        figure = new_figure()
        if draw(record, figure):
            # Both as a separate file and inside the page
            file = make_folder(folder / "report") / f"{name}.png"
            save_figure(figure, file)
            figures[name] = base64.b64encode(file.read_bytes()).decode()
    page = folder / "report.html"
    write_text(page, _render_page(record, figures))
    return page


def _render_page(record: SearchRecord, figures: dict[str, str]) -> str:
    from jinja2 import Template  # slow to import

    epoch = record.comparison_epoch
    # Values are escaped, because errors and settings may contain any text
    template = Template(_TEMPLATE.read_text(), autoescape=True)
    return template.render(
        record=record,
        is_finished=bool(record.metadata.get(FINISHED)),
        epoch=epoch,
        ranked=rank_trials(record.trials, epoch),
        failed_trials=[trial for trial in record.trials if trial.status == FAILED],
        hours=sum(trial.seconds or 0 for trial in record.trials) / 3600,
        rounds=[
            (rank_trials(trials, epoch), predictor_error(trials, epoch))
            for trials in record.completed_trials_by_round
        ],
        figures=figures,
        settings={name: json.dumps(value) for name, value in record.settings.items()},
    )
