"""Analysis of a finished search, stored as `analysis.json` for the report."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.nars.algorithm.budgets import build_constraints
from fbnetv3.nars.algorithm.evolution import pareto_front
from fbnetv3.nars.algorithm.nars_search import SearchResult
from fbnetv3.nars.algorithm.trial_store import ANALYSIS_FILE, DONE, Trial
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.utils.files import write_json

_FOLDS = 5
_MAX_POINTS = 500  # points per scatter plot
_FRONT_BUDGETS = 12  # number of budgets along the Pareto front


def save_analysis(result: SearchResult) -> Path:
    """Analyze a search and write what the report shows in addition to the trials to `analysis.json`; return its path.

    Entries are null if there are too few trials.
    """
    file = result.folder / ANALYSIS_FILE
    write_json(file, _analyze_search(result), indent=None)
    return file


def _analyze_search(result: SearchResult) -> dict[str, Any]:
    trials = [trial for trial in result.trials if trial.status == DONE]
    candidates = np.array([trial.candidate for trial in trials])
    accuracies = np.array([trial.accuracy(result.stopping_epoch) for trial in trials])
    return {
        "pretraining": result.pretraining and _describe_pretraining(result.pretraining),  # Fig. 4 (a, b)
        "cross_validation": _cross_validate(result, candidates, accuracies),  # Fig. 4 (c, d)
        "sample_efficiency": _measure_sample_efficiency(result, candidates, accuracies),  # Fig. 4 (e)
        **_cost_and_front(result, trials),
        "reference_networks": {
            name: dict(network) for name, network in result.settings.reference_networks.items()
        },
        "recommendations": [
            {
                "name": item.files.name,
                "predicted": item.predicted,
                "columns": dict(item.columns),
                "values": dict(item.candidate),
                "arch": _relative_path(item.files.arch, result.folder),
                "config": _relative_path(item.files.config, result.folder),
                "provenance": _relative_path(item.files.provenance, result.folder),
            }
            for item in result.recommendations
        ],
        "scaled_networks": [
            {"name": name, "config": _relative_path(files.config, result.folder)}
            for name, files in result.scaled_networks.items()
        ],
    }


def _describe_pretraining(report: PretrainingReport) -> dict[str, Any]:
    return {
        "names": list(report.names),
        "r2": list(report.r2),
        "labels": report.labels[:_MAX_POINTS].tolist(),
        "predicted": report.predicted[:_MAX_POINTS].tolist(),
    }


def _build_predictors(result: SearchResult) -> dict[str, AccuracyPredictor]:
    """Build predictors to fit: one without pretraining, and one pretrained like the search's if that was pretrained."""
    predictors = {"plain": AccuracyPredictor(result.space, result.settings.predictor, result.settings.seed)}
    if result.pretraining is not None:
        predictors["pretrained"] = copy.copy(result.predictor)
    return predictors


def _cross_validate(
    result: SearchResult, candidates: np.ndarray, accuracies: np.ndarray
) -> dict[str, list[float]] | None:
    """Predict each trial with a predictor trained on the other folds."""
    if len(candidates) < 3:
        return None
    # Every trial is in one fold; random, as later rounds have better trials
    order = np.random.default_rng(result.settings.seed).permutation(len(candidates))
    folds = [order[start::_FOLDS] for start in range(min(_FOLDS, len(order)))]
    predictions = {"measured": accuracies.tolist()}
    for name, predictor in _build_predictors(result).items():
        predicted = np.empty(len(candidates))
        for fold in folds:
            train = np.setdiff1d(order, fold)
            predictor.fit(candidates[train], accuracies[train])
            predicted[fold] = predictor(candidates[fold])
        predictions[name] = predicted.tolist()
    return predictions


def _measure_sample_efficiency(
    result: SearchResult, candidates: np.ndarray, accuracies: np.ndarray
) -> dict[str, list[float]] | None:
    """Measure the mean squared error on a fifth of the trials, by number of training trials."""
    if len(candidates) < 5:
        return None
    order = np.random.default_rng(result.settings.seed + 1).permutation(len(candidates))
    # One test set for all sizes
    num_test = len(order) // 5
    test = order[:num_test]
    train = order[num_test:]
    sizes = sorted({max(2, len(train) // divisor) for divisor in (8, 4, 2, 1)})
    errors: dict[str, list[float]] = {"sizes": [float(size) for size in sizes]}
    for name, predictor in _build_predictors(result).items():
        errors[name] = []
        for size in sizes:
            # More and more of the same random trials
            predictor.fit(candidates[train[:size]], accuracies[train[:size]])
            residuals = predictor(candidates[test]) - accuracies[test]
            errors[name].append(float(np.mean(residuals**2)))
    return errors


def _cost_and_front(result: SearchResult, trials: Sequence[Trial]) -> dict[str, Any]:
    settings = result.settings
    constraints = build_constraints(settings, result.space)
    column = _cost_column(constraints.column_names, result)
    if column is None:
        return {"cost": None, "front": None}

    def costs_of(candidates: np.ndarray) -> np.ndarray:
        return constraints.column_values(candidates, column)[column].astype(float)

    # JSON keys are strings
    candidates = np.array([trial.candidate for trial in trials])
    trial_costs = {
        str(trial.number): float(cost) for trial, cost in zip(trials, costs_of(candidates), strict=True)
    }
    front = pareto_front(
        result.predictor, constraints, column, candidates, _FRONT_BUDGETS, settings.evolution, settings.seed
    )
    return {
        "cost": {"column": column, "trials": trial_costs},
        "front": {"costs": costs_of(front.candidates).tolist(), "scores": front.scores.tolist()},
    }


def _cost_column(columns: Sequence[str], result: SearchResult) -> str | None:
    """Choose the first column that a budget bounds, or else the first one."""
    bounds = [text for item in result.recommendations for text in item.provenance["constraints"]]
    bounded = [column for column in columns if any(column in text.split() for text in bounds)]
    return next(iter([*bounded, *columns]), None)


def _relative_path(path: Path | None, folder: Path) -> str | None:
    return None if path is None else os.path.relpath(path, folder)
