"""NARS (Algorithm 1): pretraining, constrained iterative optimization, and an evolutionary search for each budget."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fbnetv3
from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.budgets import build_budgets, build_constraints, check_file_name
from fbnetv3.nars.algorithm.recommendations import OutputFiles, Recommendation, Recommender, space_digest
from fbnetv3.nars.algorithm.rounds import ProgressCallback, RoundRunner, SearchProgress, rank_trials
from fbnetv3.nars.algorithm.search_settings import JOINT, SearchSettings, parse_settings
from fbnetv3.nars.algorithm.trial_store import (
    ANALYSIS_FILE,
    FINISHED,
    STOPPED_BY_FAILURES,
    Trial,
    TrialStore,
    TrialStoreError,
)
from fbnetv3.nars.evaluators.evaluator_registry import Evaluator, build_evaluator, evaluator_name
from fbnetv3.nars.execution.attempts import SearchContext
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.latency_model import LATENCY_COLUMN
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.nars.space.variables import ARCHITECTURE
from fbnetv3.utils.checks import check_choice
from fbnetv3.utils.files import FolderLock, file_sha256
from fbnetv3.utils.nested_keys import first_difference

# Settings that may change when a search is resumed, because they do not determine which candidates are tried
_NOT_IN_FINGERPRINT = {
    *("rounds", "budgets", "evolution", "scaled_networks", "training_config", "reference_networks"),
    *("imports", "executor", "workers", "address", "resources", "time_limit", "retries", "max_failures"),
}
_MAX_CHECKED = 200  # maximum number of candidates that are built as a check before the search starts


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        space: the searched space; in the modes "architecture" and "recipe", only that part.
        settings: settings of the search.
        folder: output folder.
        pool: candidates that the search chooses from, integers (N, variables).
        trials: all trials.
        stopping_epoch: epochs of the trials after the first round; accuracies are compared at this epoch.
        pretraining: how well the predictor learned the pretraining labels; None without pretraining.
        predictor: predictor trained on all trials; it scores any candidate.
        recommendations: one for each budget.
        scaled_networks: files of the scaled networks, by name.
    """

    space: Space
    settings: SearchSettings
    folder: Path
    pool: np.ndarray
    trials: tuple[Trial, ...]
    stopping_epoch: int
    pretraining: PretrainingReport | None
    predictor: AccuracyPredictor
    recommendations: tuple[Recommendation, ...] = ()
    scaled_networks: Mapping[str, OutputFiles] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial with the highest accuracy."""
        return rank_trials(self.trials, self.stopping_epoch)[0]


def search(
    space: Space | str | os.PathLike,
    evaluator: str | Evaluator,
    output: str | os.PathLike,
    settings: SearchSettings | None = None,
    *,
    resume: bool = False,
    on_progress: ProgressCallback | None = None,
    **keywords: Any,
) -> SearchResult:
    """Search a space for architectures, recipes, or both jointly (Algorithm 1).

    Args:
        space: a `Space`, or its YAML file.
        evaluator: measures a candidate's accuracy after each epoch: a callable `evaluate(candidate, epochs)`, a
            registered name, or `package.module:function`.
        output: folder for trials, recommendations and report.
        settings: settings of the search; if omitted, they are built from `keywords`.
        resume: whether to resume the search in the folder. No finished trial is run again, and the result is that of an
            uninterrupted search. Settings that do not affect the choice of candidates, such as rounds and budgets, may
            differ.
        on_progress: function called with a `SearchProgress` at every event.
        keywords: fields of `SearchSettings`, instead of `settings`; `predictor` and `evolution` may be mappings.

    Raises:
        UserError: invalid settings, constraints that no candidate meets, a folder in use, trials of a different search,
            or too many failures. Finished trials are kept.
    """
    if settings is not None and keywords:
        raise UsageError(f"pass either settings or keywords, not both: {', '.join(keywords)}")
    # Before the space is loaded, which may use blocks that the imports register
    settings = settings or parse_settings(keywords)
    space = space if isinstance(space, Space) else load_space(space)
    # Find as many errors as possible before anything is written
    plan = SearchPlan(space, settings)
    evaluate = build_evaluator(evaluator, settings.evaluator_args)
    # With Ray, the datasets may not be on this machine
    if settings.executor != "ray" and hasattr(evaluate, "check"):
        evaluate.check(Candidate(plan.space, plan.pool[0], full_epochs=settings.epochs))
    fingerprint = _search_fingerprint(plan.space, evaluator, settings)
    folder = Path(output).expanduser().resolve()
    lock = FolderLock(folder, "search", "choose a different folder")
    on_progress = on_progress or (lambda progress: None)
    with lock, contextlib.closing(TrialStore(folder, create=True)) as store:
        _start_or_resume(store, fingerprint, resume)
        return _run_stages(plan, evaluate, store, resume, on_progress)


def _run_stages(
    plan: SearchPlan, evaluate: Evaluator, store: TrialStore, resume: bool, on_progress: ProgressCallback
) -> SearchResult:
    settings = plan.settings
    folder = store.folder
    num_rounds = max(settings.num_rounds(plan.space), store.num_rounds())
    if resume and not store.num_rounds():
        message = f"{folder} contains no trials yet: starting a new search"
        on_progress(SearchProgress("pretraining", message=message))
    # Stage 1: pretrain the predictor
    on_progress(SearchProgress("pretraining", num_rounds=num_rounds))
    predictor, pretraining = plan.pretrain_predictor()
    # Stage 2: rounds of trials
    runner = RoundRunner(settings, num_rounds, plan.pool, store, predictor, on_progress)
    context = SearchContext(plan.space, evaluate)
    options = ExecutorOptions(
        workers=settings.workers,
        time_limit=settings.time_limit,
        logs=folder / "logs",
        address=settings.address,
        resources=dict(settings.resources),
    )
    with open_executor(settings.executor, context, options) as executor:
        runner.run(executor)
    # Stage 3: an evolutionary search for each budget
    runner.report_progress(num_rounds, stage="evolution")
    recommender = Recommender(plan.space, runner)
    recommendations = {
        name: recommender.recommend(name, constraints) for name, constraints in plan.budgets.items()
    }
    scaled_networks = recommender.scale_networks(recommendations)
    store.update_metadata({FINISHED: time.time()})
    runner.report_progress(num_rounds, stage="done")
    return SearchResult(
        space=plan.space,
        settings=settings,
        folder=folder,
        pool=plan.pool,
        trials=tuple(runner.trials),
        stopping_epoch=runner.stopping_epoch,
        pretraining=pretraining,
        predictor=predictor,
        recommendations=tuple(recommendations.values()),
        scaled_networks=scaled_networks,
    )


class SearchPlan:
    """Space, constraints, budgets and candidate pool of a search; conflicts among its settings are found here."""

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
        self.pool = sample_pool(self.constraints, settings.pool, settings.seed)
        self._check_samples()

    def _check_samples(self) -> None:
        """Build candidates that together have most values of the variables in the pool, to find errors early."""
        rows = {row for column in self.pool.T for row in np.unique(column, return_index=True)[1]}
        for row in sorted(rows)[:_MAX_CHECKED]:
            Candidate(self.space, self.pool[row]).build()

    def pretrain_predictor(self) -> tuple[AccuracyPredictor, PretrainingReport | None]:
        """Build a predictor; pretrain it on architecture statistics if the space has architectures (Sec. 3.2)."""
        predictor = AccuracyPredictor(self.space, self.settings.predictor, self.settings.seed)
        if not len(self.space.variable_indices(ARCHITECTURE)):
            return predictor, None
        labels = pretraining_labels(self.constraints, self.pool, self.settings.pretraining_labels)
        return predictor, predictor.pretrain(self.pool, labels) if labels else None


def _search_fingerprint(
    space: Space, evaluator: str | Evaluator, settings: SearchSettings
) -> dict[str, Any]:
    """Return the settings that determine which candidates a search tries, as JSON data."""
    values = {name: value for name, value in vars(settings).items() if name not in _NOT_IN_FINGERPRINT}
    values["predictor"] = asdict(settings.predictor)
    # Functions cannot be compared across sessions, so only the names of their columns are
    values["columns"] = {
        name: column if isinstance(column, str) else name for name, column in settings.columns.items()
    }
    # The latency table counts only if candidates are chosen by it, not only budgets
    labels = settings.pretraining_labels
    columns = [*settings.constraints, *(() if isinstance(labels, str) else labels)]
    if settings.latency is not None:
        table = Path(settings.latency).expanduser()
        values["latency"] = file_sha256(table)[:12] if LATENCY_COLUMN in columns else None
    values["space"] = f"{space.name} ({space_digest(space)[:12]})"
    values["evaluator"] = evaluator_name(evaluator)
    # Other objects are compared by type, because their text may contain an address
    return json.loads(json.dumps(values, default=lambda value: str(type(value))))


def _start_or_resume(store: TrialStore, fingerprint: Mapping[str, Any], resume: bool) -> None:
    """Record what is searched in a new store; in one with trials of the same search, prepare to resume it."""
    if not store.num_rounds():  # new, or interrupted before the first round
        values = {"settings": fingerprint, "fbnetv3": fbnetv3.__version__, "started": time.time()}
        store.update_metadata(values)
        return
    if not resume:
        raise UsageError(
            f"{store.folder}: already contains a search; resume it (--resume, or resume=True), "
            "or choose a different folder"
        )
    metadata = store.metadata()
    if difference := first_difference(metadata.get("settings", {}), fingerprint):
        raise TrialStoreError(
            f"{store.file}: belongs to a search with a different {difference.key} ({json.dumps(difference.saved)}, now "
            f"{json.dumps(difference.current)}); use the settings of that search, or choose a different folder"
        )
    store.requeue(include_failed=bool(metadata.get(STOPPED_BY_FAILURES)))
    store.update_metadata({STOPPED_BY_FAILURES: False, FINISHED: None})
    (store.folder / ANALYSIS_FILE).unlink(missing_ok=True)  # outdated by the trials to come
