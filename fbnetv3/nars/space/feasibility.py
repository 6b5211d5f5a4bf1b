"""Feasibility functions: users' conditions on the values of several variables of a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import Variable
from fbnetv3.utils.checks import is_number
from fbnetv3.utils.text import describe_error

FeasibilityFunction = Callable[[Mapping[str, Any]], Any]
"""Maps values by variable name to whether they go together.

The values are arrays (N,) for N candidates, and the result is a bool array (N,). A function that cannot work on arrays
is called with the values of one candidate at a time, without those of inactive variables.
"""


class ConstraintError(UsageError):
    """Invalid constraints, or constraints that no candidate meets."""


def function_name(function: FeasibilityFunction) -> str:
    """Return the name of a feasibility function for messages, and where it is defined."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})" if code is not None else name


def evaluate_feasibility(function: FeasibilityFunction, space: Space, candidates: np.ndarray) -> np.ndarray:
    """Return which candidates, integers (N, variables), fulfill a feasibility function, bool (N,).

    Raises:
        ConstraintError: the function fails for a candidate.
    """
    try:
        result = function(_value_arrays(space, candidates))
    except Exception:  # any, of a function that is written for single values
        result = None
    if isinstance(result, np.ndarray) and result.dtype == bool and result.shape == candidates.shape[:1]:
        return result
    return np.array([_call_once(function, values) for values in space.decode_all(candidates)], bool)


def _call_once(function: FeasibilityFunction, values: dict[str, Any]) -> bool:
    try:
        return bool(function(values))
    except Exception as error:
        problem = f"feasibility function {function_name(function)} failed with {describe_error(error)}"
        raise ConstraintError(f"{problem} for the values {values}") from error


def _value_arrays(space: Space, candidates: np.ndarray) -> dict[str, np.ndarray]:
    """Return the values of candidates by variable name, (N,).

    Inactive variables are NaN among numbers, else None. Variables with tuples as values are left out: NumPy would
    compare such arrays with a tuple element by element.
    """
    active = space.active(candidates)
    arrays = {}
    for column, variable in enumerate(space.variables):
        if not any(isinstance(value, tuple) for value in _sample_values(variable)):
            arrays[variable.name] = _value_array(variable, candidates[:, column], active[:, column])
    return arrays


def _value_array(variable: Variable, indices: np.ndarray, active: np.ndarray) -> np.ndarray:
    # Decode each value that occurs once
    unique, inverse = np.unique(indices, return_inverse=True)
    values = [variable.values[index] for index in unique]
    if all(map(is_number, _sample_values(variable))):
        array = np.array(values)[inverse]
        return np.where(active, array, np.nan) if variable.when else array
    if all(isinstance(value, bool) for value in variable.values) and not variable.when:
        return np.array(values, bool)[inverse]
    array = np.array(values, object)[inverse]
    array[~active] = None
    return array


def _sample_values(variable: Variable) -> Any:
    """Return values that show the types of all of them."""
    return variable.values[:1] if variable.is_continuous else variable.values
