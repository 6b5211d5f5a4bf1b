"""Registry of evaluators, which measure the accuracy of candidates.

An evaluator is given by its registered name, as `package.module:function`, or as a callable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.registry import Registry
from fbnetv3.utils.imports import find_callable

Evaluator = Callable[[Candidate, int], Any]
"""`evaluate(candidate, epochs)` returns the candidate's accuracy after each epoch from the first; higher is better.

The accuracies are a sequence of numbers, a NumPy array or a tensor; a number is enough for one epoch. A trial may be
paused, and then be asked for again with more epochs. An evaluator that depends on nothing but the candidate and
`candidate.seed` returns the same accuracies for the epochs before the pause.

An evaluator may have these attributes:

- `continues`: whether it continues a paused trial from where that stopped, with what it has kept in
  `candidate.folder`. A search then counts only the additional epochs; otherwise it counts all epochs again.
- `check(candidate)`: called once before the first trial; it raises a UserError if every trial would fail.
- `prepare_worker()`: called before each trial, but only in worker processes, whose settings it may change.
- `trial_device`: the device that trials compute on: "cuda", "cpu", or "auto" for a GPU if there is one. Executors then
  give each trial a GPU, or its share of one, and hide the others; without the attribute, they do so only if
  `resources.num_gpus` is set.
- `clean_up(folders)`: called once at the end of a search with the folders of its trials, to delete what was kept there
  to continue them.
"""

_OPTIONAL_ATTRIBUTES = ("continues", "check", "prepare_worker", "trial_device", "clean_up")
_Function = TypeVar("_Function", bound=Callable[..., Any])

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
    if not arguments and not isinstance(target, functools.partial):
        return target
    # Python does not pass the attributes of a function on to its partial, nor to a user's own
    bound: Any = functools.partial(target, **arguments)
    for name in _OPTIONAL_ATTRIBUTES:
        for function in (target, unwrap_partial(target)):
            if hasattr(function, name):
                setattr(bound, name, getattr(function, name))
                break
    return bound


def unwrap_partial(function: Any) -> Any:
    """Return the function that a `functools.partial` calls in the end; other objects are returned as they are."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def continues_trials(function: _Function) -> _Function:
    """Mark an evaluator function, as a decorator, as one that continues paused trials: set its `continues`."""
    function.continues = True  # type: ignore[attr-defined]
    return function


def evaluator_name(evaluator: str | Evaluator) -> str:
    """Return the name of an evaluator for files and messages: its registered name, or `module:qualified.name`."""
    if isinstance(evaluator, str):
        return evaluator
    # An object is named after its class
    evaluator = unwrap_partial(evaluator)
    target = evaluator if hasattr(evaluator, "__qualname__") else type(evaluator)
    return f"{target.__module__}:{target.__qualname__}"


class Measurements(NamedTuple):
    """What an evaluator has measured."""

    curve: tuple[float, ...]  # the value, or the first objective, after each epoch
    objectives: dict[str, float]  # the other objectives after the last epoch, by name


def parse_measurements(result: Any, epochs: int, objectives: Sequence[str] = ()) -> Measurements:
    """Parse an evaluator's result: a learning curve, or a mapping of several objectives to values.

    The first of the objectives has a learning curve, (epochs,); of the others, a curve's last value counts.
    """
    if not objectives:
        return Measurements(parse_learning_curve(result, epochs), {})
    if not isinstance(result, Mapping) or set(result) != set(objectives):
        returned = (
            f"the objectives {', '.join(map(str, result))}"
            if isinstance(result, Mapping)
            else repr(result)[:60]
        )
        raise UsageError(f"expected a mapping with {', '.join(objectives)}, got {returned}")
    first, *others = objectives
    curve = parse_learning_curve(_repeat_number(result[first], epochs), epochs)
    values = {name: np.atleast_1d(np.asarray(_to_python(result[name]), np.float64)) for name in others}
    for name, value in values.items():
        if not len(value) or not np.isfinite(value[-1]):
            raise UsageError(
                f"the objective {name} is {result[name]}; return a finite number, or raise an error"
            )
    return Measurements(curve, {name: float(value[-1]) for name, value in values.items()})


def _repeat_number(value: Any, epochs: int) -> Any:
    """Return a curve, or a number for every epoch: with several objectives, trials are not stopped early."""
    value = _to_python(value)
    return [value] * epochs if isinstance(value, (int, float)) else value


def parse_learning_curve(curve: Any, epochs: int) -> tuple[float, ...]:
    """Parse an evaluator's result as a learning curve, (epochs,); a number is a curve of one epoch."""
    curve = _to_python(curve)
    try:
        values = np.atleast_1d(np.asarray(() if curve is None else curve, np.float64))
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (epochs,):
        returned = str(len(values)) if values.ndim == 1 and len(values) else repr(curve)[:60]
        raise UsageError(f"expected one accuracy for each of {epochs} epochs, got {returned}")
    if not np.isfinite(values).all():
        epoch = int(np.isfinite(values).argmin())
        raise UsageError(
            f"the accuracy after epoch {epoch + 1} is {values[epoch]}; return a finite number, or raise an error"
        )
    return tuple(values.tolist())


def _to_python(values: Any) -> Any:
    """Convert arrays and tensors, on any device and with or without gradients, to lists and numbers."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_to_python(value) for value in values] if isinstance(values, (list, tuple)) else values
