"""Analysis of a finished search, stored as `analysis.json` for the report."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.nars.algorithm.search_result import SearchResult
from fbnetv3.nars.evolution.evolution import pareto_front
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.nars.report.variable_importance import measure_importance
from fbnetv3.nars.settings.budgets import build_budgets, build_constraints
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.trials.history import stack_candidates
from fbnetv3.nars.trials.progress import rank_trials
from fbnetv3.nars.trials.trial_store import ANALYSIS_FILE, Trial
from fbnetv3.utils.files import write_json

_FOLDS = 5
_MAX_POINTS = 500  # points per scatter plot
_FRONT_BUDGETS = 10  # number of budgets along the Pareto front
# Sizes of the evolutionary search for each of these, which need not be as thorough as that of a recommendation
_FRONT_EVOLUTION = {"random": 300, "offspring": 20, "scored": 100, "swaps": 100, "max_generations": 15}


def save_analysis(result: SearchResult, max_seconds: float | None = 20.0) -> Path:
    """Analyze a search and write what the report shows in addition to the trials to `analysis.json`; return its path.

    Parts that take longer than `max_seconds` in all are null, as are those for which there are too few trials.
    """
    file = result.folder / ANALYSIS_FILE
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    write_json(file, _Analysis(result, deadline).run(), indent=None)
    return file


class _Analysis:
    def __init__(self, result: SearchResult, deadline: float) -> None:
        self.result = result
        self.deadline = deadline
        settings = result.settings
        # By number, so that folds and samples do not depend on the values
        reached = rank_trials(result.trials, result.comparison_epoch, settings.sign)
        trials = sorted(reached, key=lambda trial: trial.number)
        self.candidates = stack_candidates(trials)
        self.values = np.array([trial.value(result.comparison_epoch) for trial in trials])
        self.constraints = build_constraints(settings, result.space)
        self.budgets = build_budgets(settings, self.constraints)

    def run(self) -> dict[str, Any]:
        result = self.result
        column = choose_cost_column(self.constraints, list(self.budgets.values()))
        predictors = self._build_predictors()
        return {
            "pretraining": result.pretraining
            and _describe_pretraining(result.pretraining),  # Fig. 4 (a, b)
            "columns": _compute_columns(self.constraints, result.trials),
            "cost_column": column,
            "importance": self._measure_importance(),
            "front": self._find_front(column) if column else None,
            "cross_validation": self._cross_validate(predictors),  # Fig. 4 (c, d)
            "sample_efficiency": self._measure_sample_efficiency(predictors),  # Fig. 4 (e)
        }

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _build_predictors(self) -> dict[str, AccuracyPredictor]:
        """Build predictors to fit: one pretrained like the search's if that was pretrained, then one without."""
        result = self.result
        settings = result.settings
        predictors = {}
        if result.pretraining is not None:
            predictors["pretrained"] = copy.deepcopy(result.predictor)
        if result.pretraining is None or settings.paper:
            predictors["plain"] = AccuracyPredictor(
                result.space, result.predictor.settings, settings.seed, settings.sign
            )
        return predictors

    def _measure_importance(self) -> dict[str, Any] | None:
        if self._is_late:
            return None
        return measure_importance(self.result.predictor, self.result.space, self.result.settings.seed)

    def _find_front(self, column: str) -> dict[str, list[float]] | None:
        """Find the best predicted value at each cost."""
        if self._is_late:
            return None
        settings = self.result.settings
        front = pareto_front(
            lambda candidates: settings.sign * self.result.predictor(candidates),
            self.constraints,
            column,
            self.candidates,
            _FRONT_BUDGETS,
            replace(settings.evolution, **_FRONT_EVOLUTION),
            settings.seed,
        )
        costs = self.constraints.column_values(front.candidates, column)[column]
        return {"costs": costs.astype(float).tolist(), "values": (settings.sign * front.scores).tolist()}

    def _cross_validate(self, predictors: dict[str, AccuracyPredictor]) -> dict[str, list[float]] | None:
        """Predict each trial with a predictor trained on the other folds."""
        if len(self.values) < 3:
            return None
        # Every trial is in one fold; random, as later trials are better
        order = np.random.default_rng(self.result.settings.seed).permutation(len(self.values))
        folds = [order[start::_FOLDS] for start in range(min(_FOLDS, len(order)))]
        predictions = {}
        for name, predictor in predictors.items():
            predicted = np.empty(len(self.values))
            for fold in folds:
                if self._is_late:
                    break
                train = np.setdiff1d(order, fold)
                predictor.fit(self.candidates[train], self.values[train])
                predicted[fold] = predictor(self.candidates[fold])
            else:
                predictions[name] = predicted.tolist()
        return {"measured": self.values.tolist(), **predictions} if predictions else None

    def _measure_sample_efficiency(
        self, predictors: dict[str, AccuracyPredictor]
    ) -> dict[str, list[float]] | None:
        """Measure the mean squared error on a fifth of the trials, by number of training trials."""
        if len(self.values) < 5:
            return None
        order = np.random.default_rng(self.result.settings.seed + 1).permutation(len(self.values))
        # One test set for all sizes
        test, train = np.split(order, [len(order) // 5])
        sizes = sorted({max(2, len(train) // divisor) for divisor in (8, 4, 2, 1)})
        errors: dict[str, list[float]] = {}
        for name, predictor in predictors.items():
            squares = []
            for size in sizes:
                if self._is_late:
                    break
                # More and more of the same random trials
                predictor.fit(self.candidates[train[:size]], self.values[train[:size]])
                residuals = predictor(self.candidates[test]) - self.values[test]
                squares.append(float(np.mean(residuals**2)))
            else:
                errors[name] = squares
        return {"sizes": [float(size) for size in sizes], **errors} if errors else None


def _describe_pretraining(report: PretrainingReport) -> dict[str, Any]:
    return {
        "names": list(report.names),
        "r2": list(report.r2),
        "labels": report.labels[:_MAX_POINTS].tolist(),
        "predicted": report.predicted[:_MAX_POINTS].tolist(),
    }


def _compute_columns(constraints: Constraints, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Return the costs of trials: for each column, a number for each trial's number."""
    values = constraints.column_values(stack_candidates(trials), *constraints.column_names)
    return {
        name: {str(trial.number): float(cost) for trial, cost in zip(trials, column, strict=True)}
        for name, column in values.items()
    }


def choose_cost_column(constraints: Constraints, budgets: Sequence[Constraints]) -> str | None:
    """Choose the first column that a budget bounds, or else the first one; None if there are no columns."""
    bounds = [bound.column for item in budgets for bound in item.constraints]
    return next(iter([*bounds, *constraints.column_names]), None)
