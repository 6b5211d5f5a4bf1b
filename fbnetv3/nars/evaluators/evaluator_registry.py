"""What tells how good a candidate is: a callable by name, from a registry or a module; and tables of measurements."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fbnetv3.errors import FieldError, UsageError, suggest
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.registry import Registry

# Evaluates a candidate for so many epochs, and gives its accuracy after each of them, the higher the better. It may
# have a method `check(candidate)`, which raises a UserError where it can tell before any trial that all would fail.
Evaluate = Callable[[Candidate, int], Sequence[float]]

EVALUATORS = Registry("evaluator")
# Trains candidates with the engine. By name, since the engine does not lie below this module.
EVALUATORS.add("training", "fbnetv3.nars.evaluators.training_evaluator:TrainingEvaluator", __file__)


class CurveError(UsageError):
    """An evaluator's answer that is no learning curve."""


def find_callable(name: str, what: str) -> Any:
    """The object that `package.module:function` names. Modules are looked for in the current folder too.

    Raises:
        UsageError: there is none.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"{what} {name!r}: is not written as package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does
        raise UsageError(f"{what} {name!r}: {module} cannot be imported ({type(error).__name__}: {error})") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{what} {name!r}: {module} has no {attribute}: {suggest(part, public_names(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{what} {name!r}: is not callable")
    return found


def public_names(module: Any) -> list[str]:
    """What a module or class offers."""
    return [name for name in dir(module) if not name.startswith("_")]


def build_evaluator(evaluator: str | Evaluate, arguments: Mapping[str, Any] | None = None) -> Evaluate:
    """An evaluator from its registered name, from `package.module:function`, or as it is.

    Args:
        evaluator: the name, or a callable. What a name stands for is a class whose objects evaluate, or a function
            that does.
        arguments: of the class, or keyword arguments of the function for every candidate.

    Raises:
        UserError: there is none of that name, or it takes no such arguments.
    """
    arguments = dict(arguments or {})
    found = evaluator if not isinstance(evaluator, str) or ":" in evaluator else EVALUATORS.get(evaluator)
    if isinstance(found, str):
        found = find_callable(found, "evaluator")
    name = evaluator if isinstance(evaluator, str) else name_of(evaluator)
    if not callable(found):
        raise UsageError(f"evaluator {name!r}: is not callable")
    given = () if inspect.isclass(found) else (None, None)
    try:
        inspect.signature(found).bind(*given, **arguments)
    except TypeError as error:
        raise UsageError(f"evaluator {name!r} with {arguments}: {error}") from None
    except ValueError:
        pass  # some callables of C have no signature
    if inspect.isclass(found):
        return cast("Evaluate", found(**arguments))
    return _WithArguments(found, arguments) if arguments else found


def name_of(evaluator: str | Evaluate) -> str:
    """What to call an evaluator in files and messages."""
    if isinstance(evaluator, str):
        return evaluator
    named = evaluator if hasattr(evaluator, "__qualname__") else type(evaluator)
    return f"{named.__module__}:{named.__qualname__}"


class _WithArguments:
    """A function with keyword arguments, that other processes can load."""

    def __init__(self, function: Callable[..., Sequence[float]], arguments: Mapping[str, Any]) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        return self.function(candidate, epochs, **self.arguments)


def check_curve(curve: Any, epochs: int) -> tuple[float, ...]:
    """An evaluator's answer as a learning curve: a finite accuracy for each epoch. A number is a curve of one epoch.

    Raises:
        CurveError: it is none.
    """
    try:
        values = np.asarray(curve, np.float64)
    except (TypeError, ValueError):
        raise CurveError(f"the evaluator gave {_short(curve)}, not an accuracy for each of {epochs} epochs") from None
    if values.ndim == 0:
        values = values[None]
    if curve is None or values.ndim != 1:
        gave = "None" if curve is None else f"an array {values.shape}"
        raise CurveError(f"the evaluator gave {gave}, not an accuracy for each of {epochs} epochs")
    if len(values) != epochs:
        raise CurveError(f"the evaluator gave {values.size} accuracies for {epochs} epochs: one each is wanted")
    wrong = [i for i, value in enumerate(values.tolist()) if not math.isfinite(value)]
    if wrong:
        raise CurveError(f"the accuracy after epoch {wrong[0] + 1} is {values[wrong[0]]}, not a number")
    return tuple(values.tolist())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class TableError(FieldError):
    """A table of measurements that cannot be used."""


@EVALUATORS.register(name="table")
class TableEvaluator:
    """Looks measurements up: a search over a benchmark takes seconds.

    The table is a JSON file, a mapping from names of candidates to mappings of measurements. A candidate's name is its
    values one after the other, in the order of the space's variables, with `separator` between them.

    Args:
        file: the JSON file.
        accuracy: the measurement that is searched for: a number, or a list with one for each epoch.
        separator: between the values of a name.

    Raises:
        TableError: the file is missing or no such table.
    """

    def __init__(self, file: str | os.PathLike, accuracy: str = "accuracy", separator: str = "") -> None:
        self.file, self.accuracy, self.separator = str(file), accuracy, separator
        self.rows = read_table(file)

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        name = self.separator.join(str(value) for value in candidate.values())
        if name not in self.rows:
            raise TableError(f"has no candidate {name}", file=self.file)
        row = self.rows[name]
        if self.accuracy not in row:
            raise TableError(f"{suggest(self.accuracy, row)}", f"{name}: no {self.accuracy}", self.file)
        value = row[self.accuracy]
        return value[:epochs] if isinstance(value, list) else [value] * epochs


def read_table(file: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The rows of a JSON table of measurements, by name.

    Raises:
        TableError: the file is missing or no such table.
    """
    try:
        rows = json.loads(Path(file).expanduser().read_text())
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror or error}", file=str(file)) from None
    except ValueError as error:
        raise TableError(f"is not JSON ({error})", file=str(file)) from None
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise TableError("is not a mapping from candidates to their measurements", file=str(file))
    return rows
