"""Run a search to its end: trials, and a recommendation for each budget."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.resume import start_or_resume
from fbnetv3.nars.algorithm.search_plan import SearchPlan, build_plan
from fbnetv3.nars.algorithm.search_result import SearchResult, conclude_search
from fbnetv3.nars.algorithm.trial_runner import TrialRunner
from fbnetv3.nars.evaluators.evaluator_registry import Evaluator, build_evaluator
from fbnetv3.nars.execution.attempts import SearchContext
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.predictor.accuracy_predictor import MIN_TRIALS
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.progress import ProgressCallback, SearchProgress, comparison_epoch
from fbnetv3.nars.trials.trial_store import TrialStore
from fbnetv3.utils.files import FolderLock, expand_path


def search(
    space: Space | str | os.PathLike,
    evaluator: str | Evaluator,
    output: str | os.PathLike,
    settings: SearchSettings | None = None,
    *,
    resume: bool = False,
    accept_changes: bool = False,
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
        accept_changes: whether to resume although the source code of the evaluator has changed.
        on_progress: function called with a `SearchProgress` at every event. If it returns False, the search ends:
            running trials are interrupted, and the result is that of the trials so far.
        keywords: fields of `SearchSettings`, instead of `settings`; `predictor` and `evolution` may be mappings.

    Raises:
        UserError: invalid settings, constraints that no candidate meets, a folder in use, trials of a different search,
            or too many failures. Finished trials are kept.
    """
    # Find as many errors as possible before anything is written
    plan = build_plan(space, settings, keywords)
    settings = plan.settings
    evaluate = build_evaluator(evaluator, settings.evaluator_args)
    # With Ray, the datasets may not be on this machine
    if settings.executor != "ray" and hasattr(evaluate, "check"):
        candidate = plan.constraints.find_feasible(settings.seed)
        evaluate.check(Candidate(plan.space, candidate, full_epochs=settings.epochs))
    folder = expand_path(output).resolve()
    lock = FolderLock(folder, "search", "choose a different folder")
    on_progress = on_progress or (lambda progress: None)
    continues = getattr(evaluate, "continues", False)
    with lock, contextlib.closing(TrialStore(folder, create=True)) as store:
        if store.segments() and not resume:
            raise UsageError(
                f"{folder}: already contains a search; resume it (--resume, or resume=True), "
                "or choose a different folder"
            )
        start_or_resume(plan, store, evaluator, continues, accept_changes)
        return _run_stages(plan, evaluate, continues, store, resume, on_progress)


def _run_stages(
    plan: SearchPlan,
    evaluate: Evaluator,
    continues: bool,
    store: TrialStore,
    resume: bool,
    on_progress: ProgressCallback,
) -> SearchResult:
    settings = plan.settings
    if resume and not store.segments():
        message = f"{store.folder} contains no trials yet: starting a new search"
        on_progress(SearchProgress("trials", message=message))
    if settings.paper:
        on_progress(SearchProgress("pretraining"))
    elif settings.workers > settings.window:
        message = (
            f"{settings.window} trials run at a time: raise window to use all {settings.workers} workers"
        )
        on_progress(SearchProgress("trials", message=message))
    proposer = plan.build_proposer(continues)
    runner = TrialRunner(settings, plan.space, proposer, store, plan.epochs_planned, on_progress, continues)
    options = ExecutorOptions(
        workers=settings.workers,
        time_limit=settings.time_limit,
        logs=store.folder / "logs",
        address=settings.address,
        resources=dict(settings.resources),
    )
    context = SearchContext(plan.space, evaluate, tuple(settings.objectives))
    with open_executor(settings.executor, context, options) as executor:
        runner.run(executor)
    if runner.is_complete and hasattr(evaluate, "clean_up"):
        evaluate.clean_up([store.trial_folder(trial.number) for trial in runner.trials])
    epoch = comparison_epoch(runner.trials, settings.epochs)
    if sum(len(trial.curve) >= epoch for trial in runner.trials) < MIN_TRIALS:
        runner.fail(f"fewer than {MIN_TRIALS} trials were successful")
    runner.report_progress(stage="evolution")
    result = conclude_search(plan, store, runner.trials)
    runner.report_progress(stage="done")
    return result
