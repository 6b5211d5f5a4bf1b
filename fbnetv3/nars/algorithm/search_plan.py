"""Space, constraints, budgets and proposer of a search, checked for conflicts before anything is written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.errors import FieldError, UsageError
from fbnetv3.nars.algorithm.trial_runner import Proposer
from fbnetv3.nars.evaluators.evaluator_registry import Evaluator, evaluator_name
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.proposals.multi_objective import MultiObjectiveSearch
from fbnetv3.nars.proposals.paper_search import PaperSearch
from fbnetv3.nars.proposals.sequential_search import SequentialSearch
from fbnetv3.nars.proposals.warm_start import build_warm_start
from fbnetv3.nars.settings.budgets import build_budgets, build_constraints, check_file_name
from fbnetv3.nars.settings.search_settings import (
    DEFAULT_LABELS,
    JOINT,
    SearchSettings,
    parse_settings,
    settings_as_data,
)
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.latency_model import LATENCY_COLUMN
from fbnetv3.nars.space.sampling import sample_pool, sample_quasi_random
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.nars.space.space_definition import space_definition, space_digest
from fbnetv3.nars.space.variables import ARCHITECTURE
from fbnetv3.nars.trials.trial_store import CONFIGURATION, EPOCHS_PLANNED, SPACE
from fbnetv3.utils.checks import check_choice, error_context
from fbnetv3.utils.files import expand_path, file_sha256

logger = logging.getLogger(__name__)

# Settings that may change when a search is resumed: at most, they affect what is proposed afterward
_NOT_IN_FINGERPRINT = {
    *("budgets", "evolution", "scaled_networks", "training_config", "reference_networks"),
    *("imports", "executor", "workers", "address", "resources", "time_limit", "retries", "max_failures"),
    *("evaluations", "final_share", "rounds", "max_trials", "max_seconds", "min_gain"),
}
# Settings that matter only for Algorithm 1, or only without it
_ONLY_PAPER = {
    "pool_size",
    "round_size",
    "early_stopping_correlation",
    "early_stopping_confidence",
    "predictor",
    "pretraining_labels",
}
_ONLY_SEQUENTIAL = {"initial_trials", "first_candidates", "warm_start", "window", "early_stopping"}
_MAX_CHECKED = 200  # maximum number of candidates that are built as a check before the search starts
_CHECK_POOL = 1000  # candidates that together have most values of the variables
_NUM_REPEATED = 16  # candidates whose columns are computed twice


class SearchPlan:
    """Space, constraints, budgets and proposer of a search; conflicts among its settings are found here."""

    def __init__(self, space: Space, settings: SearchSettings) -> None:
        self.settings = settings
        self.space = space if settings.mode == JOINT else space.subspace(settings.mode)
        check_file_name(self.space.name, "space.name")
        self.constraints = build_constraints(settings, self.space)
        self.budgets = build_budgets(settings, self.constraints)
        for name, network in settings.scaled_networks.items():
            check_file_name(name, "scaled_networks")
            check_choice(network["from"], f"scaled_networks.{name}.from", self.budgets)
        for constraints in self.budgets.values():
            constraints.find_feasible(settings.seed)
        self.warm_start = None
        if settings.warm_start:
            self.warm_start = build_warm_start(settings.warm_start, self.space, settings.sign)
        self.first_candidates = self._encode_first_candidates()
        self._check_samples()

    @cached_property
    def pool(self) -> np.ndarray:
        """Candidates for pretraining, from which Algorithm 1 chooses, integers (N, variables)."""
        return sample_pool(self.constraints, self.settings.pool_size, self.settings.seed)

    @property
    def epochs_planned(self) -> int:
        """Epochs of all trials, as far as they are known beforehand."""
        settings = self.settings
        if not settings.paper:
            return settings.evaluations * settings.epochs
        return settings.num_rounds(self.space) * settings.round_size * settings.epochs

    def build_proposer(self, continues: bool = True) -> Proposer:
        """Build what decides which candidates are tried; `continues` says whether evaluators continue trials."""
        settings = self.settings
        if settings.paper:
            return PaperSearch(
                self.pool,
                lambda: self.pretrain_predictor()[0],
                settings.epochs,
                settings.num_rounds(self.space),
                settings.round_size,
                settings.early_stopping_correlation,
                settings.early_stopping_confidence,
            )
        search = SequentialSearch(
            constraints=self.constraints,
            budgets=self.budgets,
            epochs=settings.epochs,
            evaluations=settings.evaluations,
            num_initial=settings.initial_trials,
            window=settings.window,
            final_share=settings.final_share,
            seed=settings.seed,
            sign=1.0 if settings.objectives else settings.sign,
            continues=continues,
            early_stopping=settings.early_stopping and not settings.objectives,
            max_trials=settings.max_trials,
            min_gain=settings.min_gain,
            warm_start=self.warm_start,
            first_candidates=self.first_candidates,
        )
        return MultiObjectiveSearch(search, settings.signs) if settings.objectives else search

    def pretrain_predictor(self) -> tuple[AccuracyPredictor, PretrainingReport | None]:
        """Build a predictor; pretrain it on architecture statistics if the space has networks (Sec. 3.2).

        With Algorithm 1, or if labels are chosen, other columns of architectures are labels too.
        """
        settings = self.settings
        predictor_settings = settings.predictor
        if settings.paper:
            predictor_settings = replace(predictor_settings, gaussian_process=False)
        predictor = AccuracyPredictor(self.space, predictor_settings, settings.seed, settings.sign)
        if not self._is_pretrained:
            return predictor, None
        labels = pretraining_labels(self.constraints, self.pool, settings.pretraining_labels)
        return predictor, predictor.pretrain(self.pool, labels) if labels else None

    @property
    def _is_pretrained(self) -> bool:
        settings = self.settings
        has_labels = self.space.architecture is not None or settings.paper
        has_labels |= settings.pretraining_labels != DEFAULT_LABELS
        return has_labels and len(self.space.variable_indices(ARCHITECTURE)) > 0

    def describe(self, evaluator: str | Evaluator | None) -> dict[str, Any]:
        """Return what `fbnetv3.nars.load` needs to read the search, as JSON data: space, settings, length."""
        name = None if evaluator is None else evaluator_name(evaluator)
        return {
            SPACE: space_definition(self.space),
            CONFIGURATION: {"evaluator": name, **settings_as_data(self.settings)},
            EPOCHS_PLANNED: self.epochs_planned,
        }

    def fingerprint(self, evaluator: str | Evaluator | None) -> dict[str, Any]:
        """Return the settings that determine which candidates the search tries, as JSON data."""
        settings = self.settings
        ignored = _NOT_IN_FINGERPRINT | (_ONLY_SEQUENTIAL if settings.paper else _ONLY_PAPER)
        values = {name: value for name, value in vars(settings).items() if name not in ignored}
        if settings.paper:
            values["predictor"] = asdict(settings.predictor)
        # Functions cannot be compared across sessions, so only their names are
        values["columns"] = {
            name: column if isinstance(column, str) else name for name, column in settings.columns.items()
        }
        values["feasible"] = [_function_name(function) for function in settings.feasible]
        # The latency table counts only if candidates are chosen by it, not only budgets
        labels = settings.pretraining_labels
        columns = [*settings.constraints, *(() if isinstance(labels, str) else labels)]
        if settings.latency is not None:
            table = expand_path(settings.latency)
            values["latency"] = file_sha256(table)[:12] if LATENCY_COLUMN in columns else None
        values["space"] = f"{self.space.name} ({space_digest(self.space)[:12]})"
        values["warm_start"] = None if self.warm_start is None else self.warm_start.digest[:12]
        values["evaluator"] = None if evaluator is None else evaluator_name(evaluator)
        # Other objects are compared by type, because their text may contain an address
        return json.loads(json.dumps(values, default=lambda value: str(type(value))))

    def _encode_first_candidates(self) -> np.ndarray:
        candidates = [np.zeros((0, len(self.space)), np.int64)]
        for index, values in enumerate(self.settings.first_candidates):
            with error_context(f"first_candidates[{index}]"):
                candidates.append(self.space.encode(values)[None])
                if not self.constraints.feasible(candidates[-1])[0]:
                    raise FieldError(f"{dict(values)} does not meet the constraints")
        if self.warm_start is not None:
            best = self.warm_start.best
            candidates.append(best[self.constraints.feasible(best)])
        return np.concatenate(candidates)

    def _check_samples(self) -> None:
        """Build candidates that together have most values of the variables, and their labels, to find errors early."""
        samples = sample_quasi_random(self.constraints, _CHECK_POOL, self.settings.seed)
        rows = {row for column in samples.T for row in np.unique(column, return_index=True)[1]}
        for row in sorted(rows)[:_MAX_CHECKED]:
            Candidate(self.space, samples[row]).build()
        if self._is_pretrained:
            pretraining_labels(self.constraints, samples, self.settings.pretraining_labels)
        for name, (first, second) in self.constraints.varying_columns(samples[:_NUM_REPEATED]).items():
            logger.warning(
                "column %s: its function returned %.6g for a candidate, then %.6g. Budgets on it are not exact, and "
                "the search does not repeat itself: have the function store what it returned",
                *(name, first, second),
            )


def build_plan(
    space: Space | str | os.PathLike, settings: SearchSettings | None, keywords: Mapping[str, Any]
) -> SearchPlan:
    """Build a plan from a space or its file, and from settings or, in their place, their fields as keywords."""
    if settings is not None and keywords:
        raise UsageError(f"pass either settings or keywords, not both: {', '.join(keywords)}")
    # Before the space is loaded, which may use blocks that the imports register
    settings = settings or parse_settings(keywords)
    return SearchPlan(space if isinstance(space, Space) else load_space(space), settings)


def _function_name(function: str | Callable[..., Any]) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
