"""Evaluate one attempt at a trial, in whatever process an executor chooses."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from fbnetv3.errors import UserError
from fbnetv3.nars.evaluators.evaluator_registry import Measurements, parse_measurements
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TrialAttempt
from fbnetv3.nars.execution.evaluator_errors import describe_evaluator_error
from fbnetv3.nars.execution.gpu_memory import (
    breaks_gpu,
    describe_out_of_memory,
    lacks_memory,
    limit_gpu_memory,
    release_gpu_memory,
)
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.imports import import_modules


def evaluate_in_worker(
    context: SearchContext, attempt: TrialAttempt, gpu_share: float | None = None
) -> Outcome:
    """Evaluate a candidate in a worker process, which the evaluator may change to suit itself.

    `gpu_share` is the number of the worker's GPUs, less than 1 for a share of one; None if that is not known.
    """

    def prepare() -> None:
        limit_gpu_memory(gpu_share)
        if hasattr(context.evaluator, "prepare_worker"):
            context.evaluator.prepare_worker()

    return evaluate_attempt(context, attempt, prepare, gpu_share)


def evaluate_attempt(
    context: SearchContext,
    attempt: TrialAttempt,
    prepare: Callable[[], None] = lambda: None,
    gpu_share: float | None = None,
) -> Outcome:
    """Evaluate a candidate after a call of `prepare`. An exception of either becomes the outcome's error."""
    start = time.monotonic()
    try:
        import_modules(context.imports, "imports")
        prepare()
        measured = _measure(context, attempt)
        outcome = Outcome(attempt.number, measured.curve, None, 0.0, objectives=measured.objectives)
    except (Exception, SystemExit) as error:
        outcome = _describe_failure(attempt, error, gpu_share)
    # Once nothing refers to the evaluator's tensors anymore
    ends_worker = not release_gpu_memory() or outcome.ends_worker
    return replace(outcome, seconds=time.monotonic() - start, ends_worker=ends_worker)


def _measure(context: SearchContext, attempt: TrialAttempt) -> Measurements:
    candidate = Candidate(
        context.space,
        attempt.vector,
        number=attempt.trial,
        seed=attempt.seed,
        epochs=attempt.epochs,
        full_epochs=attempt.full_epochs,
        folder=attempt.folder,
        attempt=attempt.failed_attempts,
    )
    result = context.evaluator(candidate, attempt.epochs)
    return parse_measurements(result, attempt.epochs, context.objectives)


def _describe_failure(attempt: TrialAttempt, error: BaseException, gpu_share: float | None) -> Outcome:
    message = str(error) if isinstance(error, UserError) else describe_evaluator_error(error)
    out_of_memory = lacks_memory(error)
    if out_of_memory:
        message = describe_out_of_memory(error, 1 if attempt.alone else gpu_share)
    return Outcome(
        attempt.number,
        None,
        message.encode("utf-8", "replace").decode(),  # file names may hold invalid surrogates
        0.0,
        None if isinstance(error, UserError) else traceback.format_exc(),
        out_of_memory=out_of_memory,
        ends_worker=breaks_gpu(error),
    )
