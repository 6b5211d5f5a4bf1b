"""HTML report of a search: one file with all charts inside, and static figures as PNG files."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from fbnetv3.errors import UsageError
from fbnetv3.nars.report.charts.report_data import shown_value
from fbnetv3.nars.report.charts.report_figures import REPORT_FIGURES
from fbnetv3.nars.report.charts.trial_charts import cost_chart, curve_chart, prediction_chart, value_chart
from fbnetv3.nars.report.charts.variable_charts import (
    format_value,
    importance_chart,
    pair_chart,
    parallel_chart,
    slice_charts,
)
from fbnetv3.nars.report.progress_table import format_prediction
from fbnetv3.nars.report.recommendation_rows import recommendation_rows
from fbnetv3.nars.report.saved_search import SavedSearch, load
from fbnetv3.nars.report.search_status import describe_best_value, summarize_epochs
from fbnetv3.nars.trials.progress import count_epochs, prediction_error
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, RUNNING, Trial
from fbnetv3.utils.files import make_folder, write_text
from fbnetv3.utils.plotting import new_figure, save_figure

_PAGE = Path(__file__).with_name("page")
# Figures of the page even where the charts are interactive: those of the paper
_PAPER_FIGURES = ("rounds", "predictor", "samples", "pretraining", "stopping")
_CHARTS = {
    "trials": value_chart,
    "pareto": cost_chart,
    "curves": curve_chart,
    "predicted": prediction_chart,
    "importance": importance_chart,
    "pairs": pair_chart,
    "parallel": parallel_chart,
}


def write_report(folder: str | os.PathLike, refresh_seconds: int | None = None) -> Path:
    """Write `report.html`, and its figures to `report/`, in a search's folder; return the path of the page.

    The charts are interactive if plotly is installed. Without `analysis.json` (see `save_analysis`), the report shows
    only the trials and the recommendations. With `refresh_seconds`, browsers reload the page.

    Raises:
        UsageError: no trial has finished yet.
    """
    search = load(folder)
    if not search.ranked:
        raise UsageError(f"{search.folder}: no trials have finished yet; wait for the first one")
    figures = {}
    for name, draw in REPORT_FIGURES.items():
        figure = new_figure()
        if draw(search, figure):
            # Both as a separate file and inside the page
            file = make_folder(search.folder / "report") / f"{name}.png"
            save_figure(figure, file)
            figures[name] = base64.b64encode(file.read_bytes()).decode()
    page = search.folder / "report.html"
    write_text(page, _render_page(search, figures, refresh_seconds))
    return page


def _render_page(search: SavedSearch, figures: dict[str, str], refresh_seconds: int | None) -> str:
    from jinja2 import Template  # slow to import

    plotly = _plotly_script()
    charts: dict[str, Any] = {}
    if plotly:
        charts = {name: chart for name, build in _CHARTS.items() if (chart := build(search))}
        charts |= {f"slice{i}": chart for i, chart in enumerate(slice_charts(search))}
        figures = {name: figures[name] for name in _PAPER_FIGURES if name in figures}
    # Values are escaped, because errors and settings may contain any text
    template = Template((_PAGE / "report.html").read_text(), autoescape=True)
    return template.render(
        search=search,
        summary=summarize_epochs(search),
        refresh_seconds=refresh_seconds,
        failed=[trial for trial in search.trials if trial.status == FAILED],
        num_running=sum(trial.status == RUNNING for trial in search.trials),
        groups=_describe_groups(search),
        recommendations=recommendation_rows(search),
        best=_describe_best(search),
        figures=figures,
        charts=charts,
        slices=[name for name in charts if name.startswith("slice")],
        settings={name: json.dumps(value) for name, value in search.settings.items()},
        style=(_PAGE / "report.css").read_text(),
        script=(_PAGE / "report.js").read_text(),
        plotly=plotly,
        data=_script_data({"charts": charts, "trials": _hover_texts(search)}) if charts else "",
    )


def _plotly_script() -> str:
    """Return the source of plotly.js, or an empty string if plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        return ""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _script_data(data: Any) -> str:
    """Return data as JSON that cannot end the script element that holds it."""
    return json.dumps(data).replace("<", "\\u003c")


def _hover_texts(search: SavedSearch) -> dict[int, str]:
    """Return what the charts show of each trial, by its number."""
    return {trial.number: _hover_text(trial, search) for trial in search.trials}


def _hover_text(trial: Trial, search: SavedSearch) -> str:
    origin = f"round {trial.round + 1}" if search.is_paper else trial.phase
    lines = [f"<b>trial {trial.number}</b> ({origin}, {len(trial.curve)} epochs)"]
    if trial.curve:
        lines.append(f"value {shown_value(search, trial):.5g}")
    lines += [html.escape(f"{name} {value:.5g}") for name, value in trial.objectives.items()]
    if trial.predicted is not None:
        lines.append(f"predicted {format_prediction(trial.predicted, trial.predicted_std)}")
    lines += [html.escape(f"{name}: {format_value(value)}") for name, value in trial.values.items()]
    return "<br>".join(lines)


def _describe_groups(search: SavedSearch) -> list[list[Any]]:
    """Return the rows of the table of phases or rounds."""
    epoch = search.comparison_epoch
    rows = []
    for name, trials in search.groups.items():
        error = prediction_error(trials, epoch)
        rows.append(
            [
                name,
                sum(trial.status == COMPLETED for trial in trials),
                count_epochs(trials, search.continues),
                describe_best_value(trials, epoch, search.sign),
                "" if error is None else f"{error:.3g}",
                f"{sum(trial.seconds for trial in trials) / 3600:.2f}",
            ]
        )
    return rows


def _describe_best(search: SavedSearch) -> dict[str, Any]:
    best = search.best
    return {
        "number": best.number,
        "value": f"{best.value(search.comparison_epoch):.5g}",
        "predicted": format_prediction(best.predicted, best.predicted_std),
        "values": {name: format_value(value) for name, value in best.values.items()},
    }
