"""Figures of a search's report (Fig. 4 to 6 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from fbnetv3.nars.algorithm.early_stopping import MIN_CURVES, rank_correlations
from fbnetv3.nars.algorithm.rounds import predictor_error
from fbnetv3.nars.report.search_record import SearchRecord
from fbnetv3.utils.plotting import style_axes

_MAX_LABELS = 3  # statistics shown in the pretraining figure
# Keys of the analysis for predictors with and without pretraining
_PREDICTORS = {"plain": "not pretrained", "pretrained": "pretrained"}


def _scatter_predictions(axes: Any, measured: np.ndarray, predicted: np.ndarray, title: str) -> None:
    """Plot predicted over measured accuracies, with the diagonal."""
    style_axes(axes, xlabel="measured", ylabel="predicted", title=title)
    axes.scatter(measured, predicted, s=12, alpha=0.6, linewidths=0)
    diagonal = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(diagonal, diagonal, color="0.5", linewidth=1)


def _describe_correlation(measured: np.ndarray, predicted: np.ndarray) -> str:
    # Spearman's rank correlation, unless it is undefined
    if len(measured) < 3 or np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return ""
    return f", rank correlation {spearmanr(measured, predicted).statistic:.2f}"


def _draw_rounds(record: SearchRecord, figure: Any) -> bool:
    axes = figure.subplots()
    epoch = record.comparison_epoch
    best: dict[int, float] = {}
    for number, trials in enumerate(record.completed_trials_by_round, 1):
        accuracies = [trial.accuracy(epoch) for trial in trials]
        if not accuracies:
            continue
        # Spread the trials horizontally
        offsets = np.linspace(-0.25, 0.25, len(accuracies)) if len(accuracies) > 1 else np.zeros(1)
        axes.scatter(number + offsets, accuracies, s=14, alpha=0.6, linewidths=0)
        axes.plot([number - 0.32, number + 0.32], [np.median(accuracies)] * 2, color="0.2", linewidth=2)
        best[number] = max(accuracies)
    best_so_far = np.maximum.accumulate(list(best.values()))
    axes.plot(list(best), best_so_far, "k--", linewidth=1, label="best so far")
    axes.set_xticks(range(1, len(record.rounds) + 1))
    axes.legend(frameon=False)
    style_axes(axes, xlabel="round (bar: median)", ylabel=f"accuracy after epoch {epoch}")
    return True


def _draw_accuracy_over_cost(record: SearchRecord, figure: Any) -> bool:
    cost = record.analysis.get("cost")
    if not cost:
        return False
    axes = figure.subplots()
    column = cost["column"]
    scale, unit = _cost_unit(max(map(abs, cost["trials"].values())))
    # Measured accuracies, in one color per round
    for number, trials in enumerate(record.completed_trials_by_round, 1):
        costs = [cost["trials"][str(trial.number)] / scale for trial in trials]
        accuracies = [trial.accuracy(record.comparison_epoch) for trial in trials]
        axes.scatter(costs, accuracies, s=14, alpha=0.55, linewidths=0, label=f"round {number}")
    # What the predictor expects, and what it recommends
    front = record.analysis.get("front")
    if front:
        axes.plot(
            np.array(front["costs"]) / scale,
            front["scores"],
            color="0.3",
            linewidth=1,
            label="predicted front",
        )
    recommended = [
        (item["columns"][column] / scale, item["predicted"])
        for item in record.analysis["recommendations"]
        if column in item["columns"]
    ]
    if recommended:
        label = "recommended (predicted)"
        axes.scatter(*zip(*recommended, strict=True), marker="*", s=110, color="tab:red", label=label)
    # Networks to compare with
    for name, network in record.analysis["reference_networks"].items():
        if column in network:
            position = (network[column] / scale, network["accuracy"])
            axes.scatter(*position, marker="D", s=26, color="k")
            axes.annotate(name, position, xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, xlabel=f"{column}{unit}", ylabel=f"accuracy after epoch {record.comparison_epoch}")
    return True


def _cost_unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
        if largest >= scale:
            return scale, unit
    return 1.0, ""


def _draw_last_round(record: SearchRecord, figure: Any) -> bool:
    trials = record.completed_trials_by_round[-1]
    epoch = record.comparison_epoch
    if len(trials) < 2 or trials[0].predicted is None:
        return False
    measured = np.array([trial.accuracy(epoch) for trial in trials])
    predicted = np.array([trial.predicted for trial in trials], float)
    title = f"RMSE {predictor_error(trials, epoch):.3g}{_describe_correlation(measured, predicted)}"
    _scatter_predictions(figure.subplots(), measured, predicted, title)
    return True


def _draw_cross_validation(record: SearchRecord, figure: Any) -> bool:
    cross_validation = record.analysis.get("cross_validation")
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


def _draw_sample_efficiency(record: SearchRecord, figure: Any) -> bool:
    errors = record.analysis.get("sample_efficiency")
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


def _draw_pretraining(record: SearchRecord, figure: Any) -> bool:
    pretraining = record.analysis.get("pretraining")
    if not pretraining:
        return False
    labels = np.array(pretraining["labels"])
    predicted = np.array(pretraining["predicted"])
    all_axes = np.atleast_1d(figure.subplots(1, min(_MAX_LABELS, len(pretraining["names"]))))
    for i, axes in enumerate(all_axes):
        title = f"{pretraining['names'][i]}: $R^2$ {pretraining['r2'][i]:.4f}"
        _scatter_predictions(axes, labels[:, i], predicted[:, i], title)
    return True


def _draw_early_stopping(record: SearchRecord, figure: Any) -> bool:
    curves = [trial.curve for trial in record.trials if trial.round == 0 and trial.curve is not None]
    if len(curves) < MIN_CURVES or len(curves[0]) < 2:
        return False
    axes = figure.subplots()
    correlations = rank_correlations(np.array(curves))
    axes.plot(range(1, len(correlations) + 1), correlations, "o-")
    # Both lines show how the stopping epoch was chosen
    threshold = record.settings.get("early_stopping_correlation")
    if threshold is not None:
        epoch = record.comparison_epoch
        axes.axhline(threshold, color="tab:cyan", label=f"threshold {threshold:g}")
        axes.axvline(epoch, color="0.5", linestyle=":", label=f"later trials end after epoch {epoch}")
        axes.legend(frameon=False)
    style_axes(axes, xlabel="epoch", ylabel="rank correlation with the last epoch")
    return True


# By the name of the PNG file; titles and captions are in search_report.html. A function draws into a matplotlib figure,
# and returns False if the search has no data for it.
REPORT_FIGURES: dict[str, Callable[[SearchRecord, Any], bool]] = {
    "rounds": _draw_rounds,
    "pareto": _draw_accuracy_over_cost,
    "last_round": _draw_last_round,
    "predictor": _draw_cross_validation,
    "samples": _draw_sample_efficiency,
    "pretraining": _draw_pretraining,
    "stopping": _draw_early_stopping,
}
