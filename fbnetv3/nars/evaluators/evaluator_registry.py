"""Registry of evaluators, which measure the accuracy of candidates.

An evaluator is given by its registered name, as `package.module:function`, or as a callable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.registry import Registry
from fbnetv3.utils.imports import find_callable

Evaluator = Callable[[Candidate, int], Sequence[float]]
"""`evaluate(candidate, epochs)` returns the candidate's accuracy after each epoch; higher is better.

It may have a method `check(candidate)`, called once before the first trial, that raises a UserError if every trial
would fail. A method `prepare_worker()` is called before each trial, but only in worker processes, whose settings it
may change.
"""

EVALUATORS = Registry("evaluator")
EVALUATORS.add("table", "fbnetv3.nars.evaluators.table_evaluator:TableEvaluator", __file__)
EVALUATORS.add("training", "fbnetv3.nars.evaluators.training_evaluator:TrainingEvaluator", __file__)


def build_evaluator(evaluator: str | Evaluator, arguments: Mapping[str, Any] | None = None) -> Evaluator:
    """Build an evaluator from a registered name, `package.module:function`, or a callable.

    A name may refer to a function or to a class whose instances are callable. The `arguments` are passed to the class,
    or to the function on every call, as keywords.
    """
    arguments = dict(arguments or {})
    target: Any = evaluator
    if isinstance(evaluator, str):
        target = find_callable(evaluator, "evaluator") if ":" in evaluator else EVALUATORS.get(evaluator)
    if not callable(target):
        raise UsageError(
            f"evaluator {target!r} is not callable: pass a function, or a class whose instances are callable"
        )
    # A class gets the arguments when it is instantiated, a function on every call
    is_class = inspect.isclass(target)
    try:
        inspect.signature(target).bind(*(() if is_class else (None, None)), **arguments)
    except TypeError as error:
        raise UsageError(f"evaluator {evaluator_name(evaluator)!r} with {arguments}: {error}") from None
    except ValueError:  # some callables written in C have no signature
        pass
    if is_class:
        return target(**arguments)
    if not arguments:
        return target
    bound: Any = functools.partial(target, **arguments)
    for method in ("check", "prepare_worker"):
        if hasattr(target, method):
            setattr(bound, method, getattr(target, method))
    return bound


def evaluator_name(evaluator: str | Evaluator) -> str:
    """Return the name of an evaluator for files and messages: its registered name, or `module:qualified.name`."""
    if isinstance(evaluator, str):
        return evaluator
    # An object is named after its class
    target = evaluator if hasattr(evaluator, "__qualname__") else type(evaluator)
    return f"{target.__module__}:{target.__qualname__}"


def parse_learning_curve(curve: Any, epochs: int) -> tuple[float, ...]:
    """Parse an evaluator's result as a learning curve, (epochs,); a number is a curve of one epoch."""
    try:
        values = np.atleast_1d(np.asarray(() if curve is None else curve, np.float64))
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (epochs,):
        returned = f"{len(values)} accuracies" if values.ndim == 1 and len(values) else repr(curve)[:60]
        raise UsageError(
            f"the evaluator returned {returned}; expected one accuracy for each of {epochs} epochs"
        )
    if not np.isfinite(values).all():
        epoch = int(np.isfinite(values).argmin())
        raise UsageError(
            f"the accuracy after epoch {epoch + 1} is {values[epoch]}; return a finite number, or raise an error"
        )
    return tuple(values.tolist())
