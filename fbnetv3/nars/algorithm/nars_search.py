"""NARS (Algorithm 1): pretraining, constrained iterative optimization, and a recommendation for each budget.

`search` evaluates candidates itself; `Search` is asked for candidates and told the results.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fbnetv3
from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.history import stack_candidates
from fbnetv3.nars.algorithm.progress import ProgressCallback, SearchProgress, comparison_epoch, rank_trials
from fbnetv3.nars.algorithm.recommendations import OutputFiles, Recommendation, Recommender
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.algorithm.search_settings import SearchSettings, parse_settings
from fbnetv3.nars.algorithm.trial_runner import TrialRunner
from fbnetv3.nars.algorithm.trial_store import (
    ANALYSIS_FILE,
    FINISHED,
    OUTPUTS,
    STOPPED_BY_FAILURES,
    Trial,
    TrialStore,
    TrialStoreError,
)
from fbnetv3.nars.evaluators.evaluator_registry import Evaluator, build_evaluator
from fbnetv3.nars.execution.attempts import SearchContext
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.utils.files import FolderLock
from fbnetv3.utils.nested_keys import first_difference

_MIN_TRIALS = 2  # needed to train the predictor


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        space: the searched space; in the modes "architecture" and "recipe", only that part.
        settings: settings of the search.
        constraints: constraints of all candidates.
        folder: output folder.
        trials: all trials.
        comparison_epoch: epoch after which trials are compared: the last, or Algorithm 1's stopping epoch.
        pretraining: how well the predictor learned the pretraining labels; None without pretraining.
        predictor: predictor trained on all trials that reached this epoch; it predicts any candidate.
        recommendations: one for each budget.
        scaled_networks: files of the scaled networks, by name.
    """

    space: Space
    settings: SearchSettings
    constraints: Constraints = field(repr=False)
    folder: Path
    trials: tuple[Trial, ...] = field(repr=False)
    comparison_epoch: int
    pretraining: PretrainingReport | None = field(repr=False)
    predictor: AccuracyPredictor = field(repr=False)
    recommendations: tuple[Recommendation, ...] = ()
    scaled_networks: Mapping[str, OutputFiles] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial with the best measured value."""
        return rank_trials(self.trials, self.comparison_epoch, self.settings.sign)[0]


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
    """Search a space for architectures, recipes, or both jointly.

    Args:
        space: a `Space`, or its YAML file.
        evaluator: measures a candidate's accuracy, or another value, after each epoch: a callable
            `evaluate(candidate, epochs)`, a registered name, or `package.module:function`.
        output: folder for trials, recommendations and report.
        settings: settings of the search; if omitted, they are built from `keywords`.
        resume: whether to resume the search in the folder. No finished trial is run again, and the result is that of an
            uninterrupted search. Settings that do not affect the choice of candidates, such as `evaluations` and
            budgets, may differ.
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
        candidate = plan.constraints.find_feasible(settings.seed)
        evaluate.check(Candidate(plan.space, candidate, full_epochs=settings.epochs))
    folder = Path(output).expanduser().resolve()
    lock = FolderLock(folder, "search", "choose a different folder")
    on_progress = on_progress or (lambda progress: None)
    with lock, contextlib.closing(TrialStore(folder, create=True)) as store:
        _start_or_resume(store, plan.fingerprint(evaluator), resume)
        store.update_metadata(plan.describe(evaluator))
        return _run_stages(plan, evaluate, store, resume, on_progress)


def _run_stages(
    plan: SearchPlan, evaluate: Evaluator, store: TrialStore, resume: bool, on_progress: ProgressCallback
) -> SearchResult:
    settings = plan.settings
    if resume and not store.segments():
        message = f"{store.folder} contains no trials yet: starting a new search"
        on_progress(SearchProgress("trials", message=message))
    if settings.paper:
        on_progress(SearchProgress("pretraining"))
    proposer = plan.build_proposer(continues=getattr(evaluate, "continues", False))
    runner = TrialRunner(settings, plan.space, proposer, store, plan.epochs_planned, on_progress)
    options = ExecutorOptions(
        workers=settings.workers,
        time_limit=settings.time_limit,
        logs=store.folder / "logs",
        address=settings.address,
        resources=dict(settings.resources),
    )
    with open_executor(settings.executor, SearchContext(plan.space, evaluate), options) as executor:
        runner.run(executor)
    epoch = comparison_epoch(runner.trials, settings.epochs)
    if sum(len(trial.curve) >= epoch for trial in runner.trials) < _MIN_TRIALS:
        runner.fail(f"fewer than {_MIN_TRIALS} trials were successful")
    runner.report_progress(stage="evolution")
    result = _conclude(plan, store, runner.trials)
    runner.report_progress(stage="done")
    return result


def _conclude(plan: SearchPlan, store: TrialStore, trials: Sequence[Trial]) -> SearchResult:
    """Train the final predictor, and recommend a candidate for each budget (Sec. 3.4)."""
    settings = plan.settings
    epoch = comparison_epoch(trials, settings.epochs)
    reached = rank_trials(trials, epoch, settings.sign)
    predictor, pretraining = plan.pretrain_predictor()
    predictor.fit(stack_candidates(reached), np.array([trial.value(epoch) for trial in reached]))
    recommender = Recommender(plan.space, settings, store.folder, trials, predictor)
    recommendations = {
        name: recommender.recommend(name, constraints) for name, constraints in plan.budgets.items()
    }
    scaled_networks = recommender.scale_networks(recommendations)
    outputs = [*(item.files.name for item in recommendations.values()), *scaled_networks]
    store.update_metadata({FINISHED: time.time(), OUTPUTS: outputs})
    return SearchResult(
        space=plan.space,
        settings=settings,
        constraints=plan.constraints,
        folder=store.folder,
        trials=tuple(trials),
        comparison_epoch=epoch,
        pretraining=pretraining,
        predictor=predictor,
        recommendations=tuple(recommendations.values()),
        scaled_networks=scaled_networks,
    )


def _start_or_resume(store: TrialStore, fingerprint: Mapping[str, Any], resume: bool) -> None:
    """Record what is searched in a new store; in one with trials of the same search, prepare to resume it."""
    if not store.segments():  # new, or interrupted before the first trial
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
