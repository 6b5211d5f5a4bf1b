"""Evaluate one attempt at a trial, in whatever process an executor chooses."""

from __future__ import annotations

import time
import traceback

from fbnetv3.errors import UserError
from fbnetv3.nars.evaluators.evaluator_registry import parse_measurements
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TrialAttempt
from fbnetv3.nars.execution.evaluator_errors import describe_evaluator_error
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.imports import import_modules


def evaluate_in_worker(context: SearchContext, attempt: TrialAttempt) -> Outcome:
    """Evaluate a candidate in a worker process, which the evaluator may change to suit itself."""
    if hasattr(context.evaluator, "prepare_worker"):
        context.evaluator.prepare_worker()
    return evaluate_attempt(context, attempt)


def evaluate_attempt(context: SearchContext, attempt: TrialAttempt) -> Outcome:
    """Evaluate a candidate. An exception of the evaluator becomes the outcome's error."""
    start = time.monotonic()
    measured = None
    message = trace = None
    try:
        import_modules(context.imports, "imports")
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
        measured = parse_measurements(result, attempt.epochs, context.objectives)
    except UserError as error:
        message = str(error)
    except (Exception, SystemExit) as error:
        message = describe_evaluator_error(error)
        trace = traceback.format_exc()
    if message is not None:
        message = message.encode("utf-8", "replace").decode()  # file names may hold invalid surrogates
    seconds = time.monotonic() - start
    if measured is None:
        return Outcome(attempt.number, None, message, seconds, trace)
    return Outcome(attempt.number, measured.curve, None, seconds, objectives=measured.objectives)
