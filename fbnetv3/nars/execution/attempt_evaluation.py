"""Evaluate one attempt at a trial, in whatever process an executor chooses."""

from __future__ import annotations

import os
import time
import traceback

from fbnetv3.errors import UserError
from fbnetv3.nars.evaluators.evaluator_registry import parse_learning_curve
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TrialAttempt
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
    curve = None
    message = None
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
        curve = parse_learning_curve(context.evaluator(candidate, attempt.epochs), attempt.epochs)
    except UserError as error:
        message = str(error)
    except (Exception, SystemExit) as error:
        # Name the file and line that raised it
        frame = traceback.extract_tb(error.__traceback__)[-1]
        origin = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        message = f"{type(error).__name__}: {error} (in {origin})"
    if message is not None:
        message = message.encode("utf-8", "replace").decode()  # file names may hold invalid surrogates
    return Outcome(attempt.number, curve, message, time.monotonic() - start)
