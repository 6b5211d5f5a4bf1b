"""Interactive charts of variables, as data for plotly.js: importance, parallel coordinates, slices."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from fbnetv3.nars.report.charts.trial_charts import BEST_COLOR, LINE_COLOR, Chart, line_trace, typical_range
from fbnetv3.nars.report.saved_search import SavedSearch
from fbnetv3.nars.space.variables import Variable
from fbnetv3.nars.trials.history import stack_candidates

_MAX_BARS = 15
_MAX_AXES = 12  # of parallel coordinates
_MAX_SLICES = 12
_MAX_LINES = 200  # best trials in parallel coordinates
_NUM_SHADES = 8
_FEW_VALUES = 6  # values that are all labeled on an axis
_COLOR_SCALE = ("#5468c0", "#4379b8", "#3590a5", "#3fae93", "#6cc474", "#a9d35a", "#e3d84f", "#f7c548")


def importance_chart(search: SavedSearch) -> Chart | None:
    """Shares of the variance that variables explain alone and with others; None without an analysis."""
    importance = search.analysis.get("importance") or {"variables": []}
    variables = sorted(importance["variables"], key=lambda variable: variable["total"])[-_MAX_BARS:]
    if not variables:
        return None
    names = [variable["name"] for variable in variables]
    alone = [min(variable["first"], variable["total"]) for variable in variables]
    together = [variable["total"] - share for variable, share in zip(variables, alone, strict=True)]
    layout = {
        "barmode": "stack",
        "xaxis": {"title": "share of variance", "tickformat": ".0%"},
        "yaxis": {"automargin": True, "type": "category", "ticksuffix": " "},
    }
    return {
        "title": "Importance of variables",
        "caption": "Shares of the variance of the predicted value over the whole space (functional ANOVA).",
        "data": [_bars("alone", names, alone, "#4f8fd0"), _bars("with others", names, together, "#b9cde3")],
        "layout": layout,
    }


def pair_chart(search: SavedSearch) -> Chart | None:
    """Shares of the variance that pairs explain beyond their variables; None if there are none."""
    pairs = (search.analysis.get("importance") or {}).get("pairs")
    if not pairs:
        return None
    pairs = sorted(pairs, key=lambda pair: pair["share"])
    names = [" × ".join(pair["names"]) for pair in pairs]
    layout = {
        "showlegend": False,
        "xaxis": {"title": "share of variance", "tickformat": ".1%"},
        "yaxis": {"automargin": True, "type": "category", "ticksuffix": " "},
    }
    return {
        "title": "Pairs of variables",
        "caption": "What two variables explain together, beyond what each explains alone.",
        "data": [_bars("pair", names, [pair["share"] for pair in pairs], "#9467bd")],
        "layout": layout,
    }


def _bars(name: str, labels: list[str], shares: list[float], color: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": labels,
        "x": shares,
        "marker": {"color": color},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }


def parallel_chart(search: SavedSearch) -> Chart | None:
    """Parallel coordinates of the best trials: a line through each trial's values, colored by its value."""
    # Lines end at inactive variables, so those with conditions come last
    variables = sorted(
        _important_variables(search, _MAX_AXES), key=lambda index: bool(search.space.variables[index].when)
    )
    if len(variables) < 2 or len(search.ranked) < 2:
        return None
    return {
        "title": "Parallel coordinates",
        "caption": "Each line is a trial: yellow for the best, blue for the worst, red for the best one. Lines end at "
        "variables that are inactive.",
        "data": _parallel_lines(search, variables),
        "layout": _parallel_layout([search.space.variables[index].name for index in variables]),
        "labels": _axis_labels(search, variables),
        "min_width": 80 * len(variables),
    }


def _parallel_lines(search: SavedSearch, variables: list[int]) -> list[dict[str, Any]]:
    """Return a trace for each shade, with the lines of some trials, worst first, and one for the best trial."""
    trials = search.ranked[:_MAX_LINES]
    candidates = stack_candidates(trials)
    active = search.space.active(candidates)[:, variables]
    positions = search.space.positions(candidates)[:, variables]
    heights = [
        [height if is_active else None for height, is_active in zip(*row, strict=True)]
        for row in zip(positions.tolist(), active.tolist(), strict=True)
    ]
    axes = list(range(len(variables)))
    traces = []
    for shade in range(_NUM_SHADES):
        rows = [row for row in range(len(trials)) if row * _NUM_SHADES // len(trials) == shade]
        x = [*axes, None] * len(rows)
        y = [height for row in rows for height in (*heights[row], None)]
        line = line_trace("", x, y, color=_COLOR_SCALE[-1 - shade], width=1.2)
        numbers = [trials[row].number for row in rows for _ in (*axes, None)]
        traces.append({**line, "mode": "lines+markers", "marker": {"size": 4}, "trials": numbers})
    return [*reversed(traces), line_trace("", axes, heights[0], color=BEST_COLOR, width=3.5)]


def _parallel_layout(names: list[str]) -> dict[str, Any]:
    positions = list(range(len(names)))
    line = {"color": LINE_COLOR, "width": 1}
    return {
        "showlegend": False,
        "shapes": [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line} for x in positions],
        "xaxis": {
            "tickvals": positions,
            "ticktext": [html.escape(name) for name in names],
            "showgrid": False,
            "range": [-0.3, len(names) - 0.2],
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06]},
    }


def _axis_labels(search: SavedSearch, indices: list[int]) -> list[dict[str, Any]]:
    """Return some values of each variable, with where they are on its axis."""
    labels = []
    for axis, index in enumerate(indices):
        variable = search.space.variables[index]
        levels = _labeled_levels(variable)
        heights = variable.positions(np.array(levels)).tolist()
        labels += [
            {"x": axis, "y": height, "text": html.escape(format_value(variable.values[level]))}
            for level, height in zip(levels, heights, strict=True)
        ]
    return labels


def _labeled_levels(variable: Variable) -> list[int]:
    if len(variable) <= _FEW_VALUES:
        return list(range(len(variable)))
    return [0, len(variable) // 2, len(variable) - 1]


def slice_charts(search: SavedSearch) -> list[Chart]:
    """Values over each of the most important variables, with the mean that the predictor expects."""
    if not search.ranked:
        return []
    importance = search.analysis.get("importance") or {"variables": []}
    marginals = {variable["name"]: variable["marginal"] for variable in importance["variables"]}
    return [
        _slice_chart(search, index, marginals.get(search.space.variables[index].name))
        for index in _important_variables(search, _MAX_SLICES)
    ]


def _slice_chart(search: SavedSearch, index: int, marginal: dict[str, list[Any]] | None) -> Chart:
    variable = search.space.variables[index]
    candidates = stack_candidates(search.ranked)
    rows = np.flatnonzero(search.space.active(candidates)[:, index])
    trials = [search.ranked[row] for row in rows]
    numbers = [trial.number for trial in trials]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": _axis_positions(variable, candidates[rows, index]),
        "y": [trial.value(search.comparison_epoch) for trial in trials],
        "marker": {
            "size": 6,
            "opacity": 0.75,
            "color": numbers,
            "colorscale": [[0, "#5b7fd6"], [1, "#f2a93b"]],
        },
        "trials": numbers,
    }
    traces = [points]
    if marginal:
        x = _axis_positions(variable, np.array(marginal["indices"], int))
        line = line_trace("predicted mean", x, marginal["means"], color=BEST_COLOR)
        traces.append({**line, "mode": "lines+markers"} if variable.is_categorical else line)
    axis: dict[str, Any] = {"title": variable.name}
    if _is_numeric(variable):
        # On a log scale, only powers of ten have room for labels
        axis |= {"type": "log", "dtick": 1} if variable.log else {"type": "linear"}
    else:
        levels = _labeled_levels(variable)
        labels = [format_value(variable.values[level]) for level in levels]
        axis |= {"tickvals": levels, "ticktext": labels}
    limits = typical_range(search)
    if marginal and limits:
        limits = [min(limits[0], *marginal["means"]), max(limits[1], *marginal["means"])]
    layout = {"showlegend": False, "xaxis": axis, "yaxis": {"title": search.value_name, "range": limits}}
    return {"data": traces, "layout": layout}


def _axis_positions(variable: Variable, levels: np.ndarray) -> list[Any]:
    """Return where indices of values are on an axis: at the values if these are numbers."""
    if _is_numeric(variable):
        return [variable.values[level] for level in levels.tolist()]
    return levels.tolist()


def _is_numeric(variable: Variable) -> bool:
    if variable.is_categorical:
        return False
    return all(isinstance(value, (int, float)) for value in (variable.values[0], variable.values[-1]))


def _important_variables(search: SavedSearch, count: int) -> list[int]:
    """Return the positions of the variables with more than one value, those that matter most if this is known."""
    importance = search.analysis.get("importance") or {"variables": []}
    totals = {variable["name"]: variable["total"] for variable in importance["variables"]}
    varying = np.flatnonzero(search.space.sizes > 1).tolist()
    return sorted(varying, key=lambda index: -totals.get(search.space.variables[index].name, 0.0))[:count]


def format_value(value: Any) -> str:
    """Format a variable's value for a chart."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
