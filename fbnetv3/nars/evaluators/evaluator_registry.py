"""Evaluators measure candidates: by registered name, by `package.module:function`, or any callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.registry import Registry
from fbnetv3.utils.imports import find_callable

Evaluate = Callable[[Candidate, int], Sequence[float]]
"""`evaluate(candidate, epochs)` returns the candidate's accuracy after each epoch; higher is better.

It may have a method `check(candidate)`, called once before the first trial, that raises a UserError if every trial
would fail.
"""

EVALUATORS = Registry("evaluator")
EVALUATORS.add("table", "fbnetv3.nars.evaluators.table_evaluator:TableEvaluator", __file__)
EVALUATORS.add("training", "fbnetv3.nars.evaluators.training_evaluator:TrainingEvaluator", __file__)

_MAX_REPR = 60  # characters of an invalid result in an error message


class LearningCurveError(UsageError):
    """An evaluator's result that is not a learning curve."""


def build_evaluator(evaluator: str | Evaluate, arguments: Mapping[str, Any] | None = None) -> Evaluate:
    """Build an evaluator.

    Args:
        evaluator: a registered name, `package.module:function`, or a callable. A name may refer to a function or to a
            class whose instances are callable.
        arguments: passed to the class, or to the function on every call, as keywords.

    Raises:
        UserError: unknown name, or arguments that the class or function does not take.
    """
    arguments = dict(arguments or {})
    name = evaluator_name(evaluator)
    target: Any = evaluator
    if isinstance(evaluator, str):
        target = find_callable(evaluator, "evaluator") if ":" in evaluator else EVALUATORS.get(evaluator)
    if not callable(target):
        raise UsageError(f"evaluator {name!r} is not callable: pass a function, or a class whose instances are")
    # A class gets the arguments when it is instantiated, a function on every call
    is_class = inspect.isclass(target)
    _check_arguments(target, () if is_class else (None, None), arguments, name)
    if is_class:
        return cast("Evaluate", target(**arguments))
    return _WithArguments(target, arguments) if arguments else target


def _check_arguments(target: Callable, positional: Sequence[Any], arguments: Mapping[str, Any], name: str) -> None:
    try:
        inspect.signature(target).bind(*positional, **arguments)
    except ValueError:  # some callables written in C have no signature
        return
    except TypeError as error:
        raise UsageError(f"evaluator {name!r} with {dict(arguments)}: {error}") from None


def evaluator_name(evaluator: str | Evaluate) -> str:
    """Return the name of an evaluator for files and messages: its registered name, or `module:qualified.name`."""
    if isinstance(evaluator, str):
        return evaluator
    # An object is named after its class
    target = evaluator if hasattr(evaluator, "__qualname__") else type(evaluator)
    return f"{target.__module__}:{target.__qualname__}"


class _WithArguments:
    """A function with fixed keyword arguments; unlike a closure, it can be pickled."""

    def __init__(self, function: Callable[..., Sequence[float]], arguments: Mapping[str, Any]) -> None:
        self.function = function
        self.arguments = arguments

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        return self.function(candidate, epochs, **self.arguments)


def check_learning_curve(curve: Any, epochs: int) -> tuple[float, ...]:
    """Return an evaluator's result as a learning curve, (epochs,); a number is a curve of one epoch.

    Raises:
        LearningCurveError: it is not one finite accuracy per epoch.
    """
    try:
        values = np.atleast_1d(np.asarray(() if curve is None else curve, np.float64))
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (epochs,):
        returned = f"{len(values)} accuracies" if values.ndim == 1 and len(values) else repr(curve)[:_MAX_REPR]
        raise LearningCurveError(
            f"the evaluator returned {returned}; expected one accuracy for each of {epochs} epochs"
        )
    for epoch, accuracy in enumerate(values, 1):
        if not np.isfinite(accuracy):
            raise LearningCurveError(f"the accuracy after epoch {epoch} is {accuracy}; expected a finite number")
    return tuple(values.tolist())
