"""Static figures of a search's report, among them those of the paper (Fig. 4 to 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from fbnetv3.nars.proposals.early_stopping import MIN_CURVES, rank_correlations
from fbnetv3.nars.report.charts.report_data import (
    best_so_far,
    predicted_trials,
    reference_points,
    trial_costs,
)
from fbnetv3.nars.report.saved_search import SavedSearch
from fbnetv3.nars.trials.progress import prediction_error
from fbnetv3.utils.plotting import style_axes

_MAX_LABELS = 3  # statistics shown in the pretraining figure
_MAX_VARIABLES = 15  # shown in the figure of importance
# Keys of the analysis for predictors with and without pretraining
_PREDICTORS = {"plain": "not pretrained", "pretrained": "pretrained"}


def _draw_trials(search: SavedSearch, figure: Any) -> bool:
    if search.is_paper:
        return False
    axes = figure.subplots()
    epoch = search.comparison_epoch
    for name, trials in search.groups.items():
        points = [(trial.number, trial.value(epoch)) for trial in trials if len(trial.curve) >= epoch]
        if points:
            axes.scatter(*zip(*points, strict=True), s=16, alpha=0.7, linewidths=0, label=name)
    numbers, values = best_so_far(search)
    axes.step(numbers, values, "k--", where="post", linewidth=1, label="best so far")
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, xlabel="trial", ylabel=f"value after epoch {epoch}")
    return True


def _draw_rounds(search: SavedSearch, figure: Any) -> bool:
    if not search.is_paper:
        return False
    axes = figure.subplots()
    epoch = search.comparison_epoch
    best: dict[int, float] = {}
    for number, trials in enumerate(search.groups.values(), 1):
        values = [trial.value(epoch) for trial in trials if len(trial.curve) >= epoch]
        if not values:
            continue
        # Spread the trials horizontally
        offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(number + offsets, values, s=14, alpha=0.6, linewidths=0)
        axes.plot([number - 0.32, number + 0.32], [np.median(values)] * 2, color="0.2", linewidth=2)
        best[number] = search.sign * max(search.sign * np.array(values))
    running = search.sign * np.maximum.accumulate(search.sign * np.array(list(best.values())))
    axes.plot(list(best), running, "k--", linewidth=1, label="best so far")
    axes.set_xticks(range(1, len(search.groups) + 1))
    axes.legend(frameon=False)
    style_axes(axes, xlabel="round (bar: median)", ylabel=f"value after epoch {epoch}")
    return True


def _draw_value_over_cost(search: SavedSearch, figure: Any) -> bool:
    column, costs = trial_costs(search)
    if column is None:
        return False
    axes = figure.subplots()
    epoch = search.comparison_epoch
    scale, unit = _cost_unit(max(map(abs, costs.values()), default=0))
    for name, trials in search.groups.items():
        points = [
            (costs[trial.number] / scale, trial.value(epoch))
            for trial in trials
            if len(trial.curve) >= epoch
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, alpha=0.55, linewidths=0, label=name)
    # What the predictor expects, and what is recommended
    front = search.analysis.get("front")
    if front and search.analysis.get("cost_column") == column:
        axes.plot(
            np.array(front["costs"]) / scale,
            front["values"],
            color="0.3",
            linewidth=1,
            label="predicted front",
        )
    for recommendation in search.recommendations:
        if column in recommendation.get("columns", {}) and "predicted" in recommendation:
            measured = recommendation["measured"]
            value = recommendation["predicted"] if measured is None else measured
            position = (recommendation["columns"][column] / scale, value)
            axes.scatter(*position, marker="*", s=110, color="tab:red")
            _annotate(axes, recommendation["name"].removeprefix(f"{search.name}_"), position)
    # Networks to compare with
    for name, cost, value in reference_points(search, column):
        axes.scatter(cost / scale, value, marker="D", s=26, color="k")
        _annotate(axes, name, (cost / scale, value))
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, xlabel=f"{column}{unit}", ylabel=f"value after epoch {epoch}")
    return True


def _annotate(axes: Any, text: str, position: tuple[float, float]) -> None:
    axes.annotate(text, position, xytext=(5, -10), textcoords="offset points", fontsize=8)


def _cost_unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= scale:
            return scale, unit
    return 1.0, ""


def _draw_predicted(search: SavedSearch, figure: Any) -> bool:
    trials = predicted_trials(search)
    if len(trials) < 2:
        return False
    epoch = search.comparison_epoch
    measured = np.array([trial.value(epoch) for trial in trials])
    predicted = np.array([trial.predicted for trial in trials], float)
    deviations = np.array([trial.predicted_std or 0 for trial in trials])
    title = f"RMSE {prediction_error(trials, epoch):.3g}{_describe_correlation(measured, predicted)}"
    axes = figure.subplots()
    axes.errorbar(measured, predicted, deviations, fmt="none", ecolor="0.7", linewidth=0.8)
    _scatter_predictions(axes, measured, predicted, title)
    return True


def _draw_cross_validation(search: SavedSearch, figure: Any) -> bool:
    cross_validation = search.analysis.get("cross_validation")
    if not cross_validation:
        return False
    measured = np.array(cross_validation["measured"])
    predictors = {key: label for key, label in _PREDICTORS.items() if key in cross_validation}
    all_axes = np.atleast_1d(figure.subplots(1, len(predictors)))
    for axes, (key, label) in zip(all_axes, predictors.items(), strict=True):
        predicted = np.array(cross_validation[key])
        error = np.mean((predicted - measured) ** 2)
        title = f"{label}: MSE {error:.3g}{_describe_correlation(measured, predicted)}"
        _scatter_predictions(axes, measured, predicted, title)
        axes.title.set_fontsize(9)
    return True


def _scatter_predictions(axes: Any, measured: np.ndarray, predicted: np.ndarray, title: str) -> None:
    """Plot predicted over measured values, with the diagonal."""
    style_axes(axes, xlabel="measured", ylabel="predicted", title=title)
    axes.scatter(measured, predicted, s=12, alpha=0.6, linewidths=0)
    diagonal = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(diagonal, diagonal, color="0.5", linewidth=1)


def _describe_correlation(measured: np.ndarray, predicted: np.ndarray) -> str:
    # Spearman's rank correlation, unless it is undefined
    if len(measured) < 3 or np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return ""
    return f", rank correlation {spearmanr(measured, predicted).statistic:.2f}"


def _draw_sample_efficiency(search: SavedSearch, figure: Any) -> bool:
    errors = search.analysis.get("sample_efficiency")
    if not errors:
        return False
    axes = figure.subplots()
    for key, label in _PREDICTORS.items():
        if key in errors:
            axes.plot(errors["sizes"], errors[key], "o-", label=label)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    style_axes(axes, xlabel="training trials", ylabel="mean squared error on held-out trials")
    return True


def _draw_pretraining(search: SavedSearch, figure: Any) -> bool:
    pretraining = search.analysis.get("pretraining")
    if not pretraining:
        return False
    labels = np.array(pretraining["labels"])
    predicted = np.array(pretraining["predicted"])
    all_axes = np.atleast_1d(figure.subplots(1, min(_MAX_LABELS, len(pretraining["names"]))))
    for i, axes in enumerate(all_axes):
        title = f"{pretraining['names'][i]}: $R^2$ {pretraining['r2'][i]:.4f}"
        _scatter_predictions(axes, labels[:, i], predicted[:, i], title)
    return True


def _draw_early_stopping(search: SavedSearch, figure: Any) -> bool:
    epochs = search.epochs
    curves = [trial.curve for trial in search.trials if trial.round == 0 and len(trial.curve) == epochs]
    if len(curves) < MIN_CURVES or epochs < 2:
        return False
    axes = figure.subplots()
    correlations = rank_correlations(np.array(curves))
    axes.plot(range(1, len(correlations) + 1), correlations, "o-")
    # Both lines show how the stopping epoch was chosen
    threshold = search.settings.get("early_stopping_correlation")
    if search.is_paper and threshold is not None:
        epoch = search.comparison_epoch
        axes.axhline(threshold, color="tab:cyan", label=f"threshold {threshold:g}")
        axes.axvline(epoch, color="0.5", linestyle=":", label=f"later trials end after epoch {epoch}")
        axes.legend(frameon=False)
    style_axes(axes, xlabel="epoch", ylabel="rank correlation with the last epoch")
    return True


def _draw_importance(search: SavedSearch, figure: Any) -> bool:
    importance = search.analysis.get("importance")
    if not importance:
        return False
    variables = sorted(importance["variables"], key=lambda variable: variable["total"])[-_MAX_VARIABLES:]
    axes = figure.subplots()
    names = [variable["name"] for variable in variables]
    axes.barh(names, [variable["total"] for variable in variables], color="0.8", label="with others")
    axes.barh(names, [variable["first"] for variable in variables], label="alone")
    axes.legend(frameon=False, loc="lower right")
    style_axes(axes, xlabel="share of the predicted value's variance")
    return True


# By the name of the PNG file; titles and captions are in page/report.html. A function draws into a matplotlib figure,
# and returns False if the search has no data for it.
REPORT_FIGURES: dict[str, Callable[[SavedSearch, Any], bool]] = {
    "trials": _draw_trials,
    "rounds": _draw_rounds,
    "pareto": _draw_value_over_cost,
    "predicted": _draw_predicted,
    "importance": _draw_importance,
    "predictor": _draw_cross_validation,
    "samples": _draw_sample_efficiency,
    "pretraining": _draw_pretraining,
    "stopping": _draw_early_stopping,
}
