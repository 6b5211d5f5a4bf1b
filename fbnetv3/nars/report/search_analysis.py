"""What a search learned, as plain data beside its trials: what the report shows and the trials alone do not tell."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.nars.algorithm.evolution import pareto_front
from fbnetv3.nars.algorithm.nars_search import SearchResult
from fbnetv3.nars.algorithm.trial_store import ANALYSIS, DONE
from fbnetv3.nars.predictor.accuracy_predictor import Predictor
from fbnetv3.utils.files import atomic_write

_FOLDS = 5
_POINTS = 500  # of a scatter plot
_FRONT = 12  # budgets along the front


def analyse(result: SearchResult) -> dict[str, Any]:
    """Everything of a search's result that its report needs and that takes time to compute.

    Returns:
        "pretraining": free labels of held-out candidates and what is predicted of them (Fig. 4 a, b), or None;
        "cross_validation": measured accuracies, and what predictors with and without pretraining that had not seen
        them predict (c, d); "samples": mean squared errors by number of trials (e); both None where trials are too
        few; "front": the predictor's Pareto front; "cost": the column that it is over, or None, and its values for
        all trials; "found": recommendations.
    """
    settings = result.settings
    done = [trial for trial in result.trials if trial.status == DONE]
    candidates = np.array([trial.candidate for trial in done])
    accuracies = np.array([trial.accuracy(result.stop_epoch) for trial in done])
    constraints = settings.constraints_in(result.space)
    column = _cost_column(constraints.known, result.found)
    found = {
        "stop_epoch": result.stop_epoch,
        "pretraining": _pretraining(result),
        "cross_validation": _cross_validation(result, candidates, accuracies),
        "samples": _samples(result, candidates, accuracies),
        "cost": None,
        "front": None,
        "known": {name: dict(place) for name, place in settings.known.items()},
        "found": [_recommendation(found, result.folder) for found in result.found],
        "scaled": [
            {"name": name, "config": _within(emitted.config, result.folder)} for name, emitted in result.scaled.items()
        ],
    }
    if column is not None:
        costs = constraints.values(candidates, column)[column]
        found["cost"] = {
            "column": column,
            "trials": {str(t.number): float(c) for t, c in zip(done, costs, strict=True)},
        }
        front = pareto_front(
            result.predictor, constraints, column, candidates, _FRONT, settings.evolution, settings.seed
        )
        found["front"] = {
            "costs": constraints.values(front.candidates, column)[column].astype(float).tolist(),
            "scores": front.scores.tolist(),
        }
    return found


def save_analysis(result: SearchResult) -> Path:
    """Analyse a result, and write `analysis.json` into its folder.

    Raises:
        OutputError: it cannot be written.
    """
    file = result.folder / ANALYSIS
    content = json.dumps(analyse(result))
    with atomic_write(file) as f:
        f.write(content.encode())
    return file


def _cost_column(known: Sequence[str], found: Sequence[Any]) -> str | None:
    """The column that budgets are about, else the first that there is."""
    bounded = [text for item in found for text in item.provenance["constraints"]]
    for column in known:
        if any(f" {column} " in f" {text} " for text in bounded):
            return column
    return known[0] if known else None


def _pretraining(result: SearchResult) -> dict[str, Any] | None:
    report = result.pretrained
    if report is None:
        return None
    return {
        "names": list(report.names),
        "r2": list(report.r2),
        "labels": report.labels[:_POINTS].tolist(),
        "predicted": report.predicted[:_POINTS].tolist(),
    }


def _predictors(result: SearchResult) -> dict[str, Predictor]:
    """A predictor like the search's, and one that was not pretrained."""
    s = result.settings
    plain = Predictor(result.space, s.predictor, s.seed)
    return {"pretrained": copy.copy(result.predictor), "plain": plain} if result.pretrained else {"plain": plain}


def _cross_validation(
    result: SearchResult, candidates: np.ndarray, accuracies: np.ndarray
) -> dict[str, list[float]] | None:
    """What predictors say of trials that they have not seen, in five parts; None where they are too few."""
    if len(candidates) < 3:
        return None
    order = np.random.default_rng(result.settings.seed).permutation(len(candidates))
    folds = [order[start::_FOLDS] for start in range(min(_FOLDS, len(order)))]
    found = {"measured": accuracies.tolist()}
    for name, predictor in _predictors(result).items():
        predicted = np.empty(len(candidates))
        for fold in folds:
            rest = np.setdiff1d(order, fold)
            predictor.fit(candidates[rest], accuracies[rest])
            predicted[fold] = predictor(candidates[fold])
        found[name] = predicted.tolist()
    return found


def _samples(result: SearchResult, candidates: np.ndarray, accuracies: np.ndarray) -> dict[str, list[float]] | None:
    """Mean squared error on a fifth of the trials, by how many others were learned from; None without a fifth."""
    if len(candidates) < 5:
        return None
    order = np.random.default_rng(result.settings.seed + 1).permutation(len(candidates))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    sizes = sorted({max(2, len(train) // part) for part in (8, 4, 2, 1)})
    found: dict[str, list[float]] = {"sizes": [float(size) for size in sizes]}
    for name, predictor in _predictors(result).items():
        errors = []
        for size in sizes:
            predictor.fit(candidates[train[:size]], accuracies[train[:size]])
            error = predictor(candidates[test]) - accuracies[test]
            errors.append(float(np.mean(error**2)))
        found[name] = errors
    return found


def _recommendation(found: Any, folder: Path) -> dict[str, Any]:
    files = {"arch": found.emitted.arch, "config": found.emitted.config, "provenance": found.emitted.provenance}
    return {
        "name": found.emitted.name,
        "predicted": found.predicted,
        "columns": dict(found.columns),
        "values": dict(found.candidate),
        **{what: _within(path, folder) for what, path in files.items()},
    }


def _within(path: Path | None, folder: Path) -> str | None:
    return None if path is None else os.path.relpath(path, folder)
