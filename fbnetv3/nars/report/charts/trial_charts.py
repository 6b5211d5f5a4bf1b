"""Interactive charts of trials, as data for plotly.js: values, learning curves, predictions, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fbnetv3.nars.report.charts.report_data import (
    best_so_far,
    measured_front,
    predicted_trials,
    reference_points,
    shown_value,
    trial_costs,
)
from fbnetv3.nars.report.saved_search import SavedSearch
from fbnetv3.nars.settings.search_settings import MAXIMIZE
from fbnetv3.nars.trials.trial_store import FINAL, GIVEN, INITIAL, PROPOSED, Trial

Chart = dict[str, Any]
"""`data` and `layout` of plotly.js, `title` and `caption`. A trace's `trials` are the numbers of the trials shown."""

BEST_COLOR = "#d6455d"
LINE_COLOR = "#8a8f98"
_PHASE_COLORS = {GIVEN: "#9467bd", INITIAL: "#4f8fd0", PROPOSED: "#e8893a", FINAL: "#3fa66b"}
_ROUND_COLORS = ("#4f8fd0", "#e8893a", "#3fa66b", "#9467bd", "#c2a13a", "#37a3a3", "#c7637f")


def group_colors(search: SavedSearch) -> dict[str, str]:
    """Return the color of each phase or round."""
    names = list(search.groups)
    return {
        name: _PHASE_COLORS.get(name, _ROUND_COLORS[i % len(_ROUND_COLORS)]) for i, name in enumerate(names)
    }


def value_chart(search: SavedSearch) -> Chart:
    """Values over trials, with the best so far; trials that were continued have a line from where they paused."""
    colors = group_colors(search)
    traces = []
    for name, trials in search.groups.items():
        reached = [trial for trial in trials if trial.curve]
        marker = {
            "color": colors[name],
            "size": 8,
            "symbol": [
                "circle" if len(trial.curve) >= search.comparison_epoch else "circle-open"
                for trial in reached
            ],
        }
        traces.append(
            _scatter(
                name,
                reached,
                [t.number for t in reached],
                [shown_value(search, t) for t in reached],
                marker,
            )
        )
    paused_x: list[Any] = []
    paused_y: list[Any] = []
    for trial in search.trials:
        for segment in trial.segments[:-1]:
            if segment.epochs < min(search.comparison_epoch, len(trial.curve)):
                paused_x += [trial.number, trial.number, None]
                paused_y += [trial.value(segment.epochs), shown_value(search, trial), None]
    if paused_x:
        traces.append(line_trace("continued", paused_x, paused_y, dash="dot"))
    numbers, values = best_so_far(search)
    best = line_trace("best so far", numbers, values, color=BEST_COLOR)
    best["line"]["shape"] = "hv"
    layout = {
        "xaxis": {"title": "trial"},
        "yaxis": {"title": search.value_name, "range": typical_range(search)},
    }
    return {
        "title": "Values of the trials",
        "caption": "Each point is a trial; open circles were stopped before the epoch after which trials are compared.",
        "data": [*traces, best],
        "layout": layout,
    }


def curve_chart(search: SavedSearch) -> Chart | None:
    """Learning curves; None if trials have a single epoch."""
    if search.epochs < 2 or not search.ranked:
        return None
    colors = group_colors(search)
    best = search.best
    traces = []
    for name, trials in search.groups.items():
        x: list[Any] = []
        y: list[Any] = []
        numbers: list[int] = []
        for trial in trials:
            x += [*range(1, len(trial.curve) + 1), None]
            y += [*trial.curve, None]
            numbers += [trial.number] * (len(trial.curve) + 1)
        line = line_trace(name, x, y, color=colors[name], width=1)
        traces.append({**line, "opacity": 0.55, "trials": numbers})
    highlighted = line_trace(
        f"best, trial {best.number}",
        list(range(1, len(best.curve) + 1)),
        list(best.curve),
        color=BEST_COLOR,
        width=3,
    )
    traces.append({**highlighted, "trials": [best.number] * len(best.curve)})
    return {
        "title": "Learning curves",
        "caption": "The value after each epoch.",
        "data": traces,
        "layout": {
            "xaxis": {"title": "epoch"},
            "yaxis": {"title": search.value_name, "range": typical_range(search, True)},
        },
    }


def prediction_chart(search: SavedSearch) -> Chart | None:
    """Values predicted when trials were proposed, over the measured ones; None without predictions."""
    predicted = predicted_trials(search)
    if not predicted:
        return None
    epoch = search.comparison_epoch
    colors = group_colors(search)
    traces = []
    for name, group in search.groups.items():
        trials = [trial for trial in group if trial in predicted]
        if trials:
            measured = [trial.value(epoch) for trial in trials]
            trace = _scatter(name, trials, measured, [t.predicted for t in trials], {"color": colors[name]})
            deviations = [trial.predicted_std or 0 for trial in trials]
            trace["error_y"] = {"array": deviations, "thickness": 1, "width": 0, "color": colors[name]}
            traces.append(trace)
    values = [trial.value(epoch) for trial in predicted]
    diagonal = line_trace("equal", [min(values), max(values)], [min(values), max(values)], dash="dot")
    deviations = [
        abs(t.value(epoch) - float(t.predicted or 0)) <= (t.predicted_std or 0) for t in predicted
    ]
    return {
        "title": "Predicted and measured values",
        "caption": "Predictions were made when the trials were proposed; bars are one standard deviation, which "
        f"covers {np.mean(deviations):.0%} of the measured values.",
        "data": [*traces, diagonal],
        "layout": {"xaxis": {"title": "measured"}, "yaxis": {"title": "predicted"}},
    }


def cost_chart(search: SavedSearch) -> Chart | None:
    """Values over costs, with fronts, recommendations and reference networks; None without a cost column."""
    column, costs = trial_costs(search)
    if column is None or not search.ranked:
        return None
    epoch = search.comparison_epoch
    colors = group_colors(search)
    traces = []
    for name, group in search.groups.items():
        trials = [trial for trial in group if len(trial.curve) >= epoch]
        x = [costs[trial.number] for trial in trials]
        marker = {"color": colors[name], "size": 7}
        traces.append(_scatter(name, trials, x, [t.value(epoch) for t in trials], marker))
    front = measured_front(search, column, costs)
    x = [costs[trial.number] for trial in front]
    line = line_trace("measured front", x, [trial.value(epoch) for trial in front], color=BEST_COLOR)
    line["line"]["shape"] = "vh" if search.objectives.get(column) == MAXIMIZE else "hv"
    traces.append(line)
    if (predicted := search.analysis.get("front")) and search.analysis.get("cost_column") == column:
        traces.append(line_trace("predicted front", predicted["costs"], predicted["values"], dash="dot"))
    traces += _cost_markers(search, column)
    return {
        "title": f"{search.value_name.capitalize()} and {column}",
        "caption": "The fronts join what is best at each cost, as measured and as the predictor expects.",
        "data": traces,
        "layout": {
            "xaxis": {"title": column, "exponentformat": "SI"},
            "yaxis": {"title": search.value_name, "range": typical_range(search)},
        },
    }


def _cost_markers(search: SavedSearch, column: str) -> list[dict[str, Any]]:
    """Return markers of the recommendations and of the reference networks."""
    recommended = []
    for item in search.recommendations:
        if column in item.get("columns", {}) and "predicted" in item:
            value = item["predicted"] if item["measured"] is None else item["measured"]
            recommended.append(
                (item["name"].removeprefix(f"{search.name}_"), item["columns"][column], value)
            )
    traces = []
    for label, points, symbol in (
        ("recommended", recommended, "star"),
        ("reference", reference_points(search, column), "diamond"),
    ):
        if points:
            names, x, y = zip(*points, strict=True)
            marker = {"symbol": symbol, "size": 13, "color": BEST_COLOR if symbol == "star" else LINE_COLOR}
            trace = {"type": "scatter", "mode": "markers+text", "name": label, "marker": marker}
            traces.append({**trace, "x": x, "y": y, "text": names, "textposition": "bottom center"})
    return traces


def _scatter(
    name: str, trials: Sequence[Trial], x: Sequence[Any], y: Sequence[Any], marker: dict[str, Any]
) -> dict[str, Any]:
    numbers = [trial.number for trial in trials]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"opacity": 0.8, **marker},
        "trials": numbers,
    }


def line_trace(
    name: str,
    x: Sequence[Any],
    y: Sequence[Any],
    color: str = LINE_COLOR,
    width: float = 2,
    dash: str = "solid",
) -> dict[str, Any]:
    """Return a line without hover texts; None in `x` and `y` interrupts it."""
    line = {"color": color, "width": width, "dash": dash}
    trace = {"type": "scatter", "mode": "lines", "name": name, "line": line, "hoverinfo": "skip"}
    return {**trace, "x": list(x), "y": list(y)}


def typical_range(search: SavedSearch, whole_curves: bool = False) -> list[float] | None:
    """Return the range of values without a few very bad ones, which would hide the differences among the others."""
    trials = [trial for trial in search.trials if trial.curve]
    values = [shown_value(search, trial) for trial in trials]
    if whole_curves:
        values = [value for trial in trials for value in trial.curve]
    if len(values) < 8:
        return None
    best, median, worst = (
        float(np.quantile(search.sign * np.array(values), share)) for share in (1, 0.5, 0)
    )
    limit = max(worst, median - 4 * (best - median))
    margin = 0.05 * (best - limit) or 1.0
    return sorted([search.sign * (limit - margin), search.sign * (best + margin)])
