"""Conditions under which variables are active, and the number of candidates that differ in active variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components

from fbnetv3.errors import suggest
from fbnetv3.nars.space.variables import Condition, SpaceError, Variable, to_choice
from fbnetv3.utils.checks import check_type, error_context

_MAX_COMPARED = 4


class ParentIndices(NamedTuple):
    """A condition in terms of candidates: the parent's position, and the indices of the values that fulfill it."""

    parent: int
    indices: tuple[int, ...]


def parse_conditions(entry: Any, earlier: Mapping[str, Variable]) -> tuple[Condition, ...]:
    """Parse the key `when` of a variable, given the variables before it, by name."""
    check_type(entry, "when", Mapping, "a mapping such as {optimizer: sgd} or {depth: [3, 4]}", SpaceError)
    conditions = []
    for name, value in entry.items():
        value = to_choice(value)
        # A list means any of its values, unless the parent's values are lists themselves
        is_value = name in earlier and earlier[name].index(value) is not None
        values = value if isinstance(value, tuple) and not is_value else (value,)
        conditions.append(Condition(str(name), values))
    return tuple(conditions)


def resolve_conditions(variables: Sequence[Variable]) -> tuple[tuple[ParentIndices, ...], ...]:
    """Look up the parents of each variable, and their values; return the conditions of each variable.

    Raises:
        SpaceError: a parent is not among the variables before it, or cannot have the value.
    """
    positions: dict[str, int] = {}
    resolved = []
    for position, variable in enumerate(variables):
        conditions = []
        for condition in variable.when:
            with error_context(f"variables.{variable.name}.when.{condition.parent}"):
                if condition.parent not in positions:
                    raise SpaceError(_describe_unknown_parent(condition.parent, variables, positions))
                parent = positions[condition.parent]
                conditions.append(ParentIndices(parent, _find_values(condition, variables[parent])))
        resolved.append(tuple(conditions))
        positions[variable.name] = position
    return tuple(resolved)


def _describe_unknown_parent(name: str, variables: Sequence[Variable], earlier: Mapping[str, int]) -> str:
    if any(variable.name == name for variable in variables):
        return f"{name} must be defined before the variable that depends on it"
    return f"{name} is not a variable: {suggest(name, earlier)}"


def _find_values(condition: Condition, parent: Variable) -> tuple[int, ...]:
    if not condition.values:
        raise SpaceError("must have at least one value")
    indices = set()
    for value in condition.values:
        index = parent.index(value)
        if index is None:
            hint = f"must be {parent.describe_values()}"
            if not parent.is_continuous:
                hint = suggest(str(value), map(str, parent.values))
            raise SpaceError(f"{value!r} is not a value of {parent.name}: {hint}")
        indices.add(index)
    return tuple(sorted(indices))


def active_variables(candidates: np.ndarray, conditions: Sequence[Sequence[ParentIndices]]) -> np.ndarray:
    """Return which variables of candidates, integers (N, variables), are active, bool (N, variables)."""
    active = np.ones(candidates.shape, bool)
    for position, own_conditions in enumerate(conditions):
        # A child of an inactive parent is inactive
        for parent, indices in own_conditions:
            active[:, position] &= active[:, parent] & _is_any_of(candidates[:, parent], indices)
    return active


def _is_any_of(values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    # `np.isin` takes ten times as long for one or two indices
    if len(indices) > _MAX_COMPARED:
        return np.isin(values, indices)
    matches = values == indices[0]
    for index in indices[1:]:
        matches |= values == index
    return matches


def count_candidates(sizes: Sequence[int], conditions: Sequence[Sequence[ParentIndices]]) -> int:
    """Return the number of candidates that differ in an active variable."""
    # Variables that no condition connects multiply; this keeps the number of combinations of conditions small
    edges = np.zeros((len(sizes), len(sizes)), bool)
    for position, own_conditions in enumerate(conditions):
        for condition in own_conditions:
            edges[position, condition.parent] = True
    total = 1
    num_groups, groups = connected_components(edges, directed=False)
    for group in range(num_groups):
        total *= _count_connected(np.flatnonzero(groups == group).tolist(), sizes, conditions)
    return total


def _count_connected(
    positions: Sequence[int], sizes: Sequence[int], conditions: Sequence[Sequence[ParentIndices]]
) -> int:
    """Return the number of distinct values of the variables at these positions, in order."""
    # Number of candidates by the set of conditions that they fulfill
    counts: Counter[frozenset[ParentIndices]] = Counter({frozenset(): 1})
    for number, position in enumerate(positions):
        later = {condition for child in positions[number + 1 :] for condition in conditions[child]}
        own = [condition for condition in later if condition.parent == position]
        # Number of values that fulfill each set of conditions
        listed = sorted({index for condition in own for index in condition.indices})
        values = Counter(
            frozenset(condition for condition in own if index in condition.indices) for index in listed
        )
        values[frozenset()] += int(sizes[position]) - len(listed)
        extended: Counter[frozenset[ParentIndices]] = Counter()
        for fulfilled, count in counts.items():
            if fulfilled.issuperset(conditions[position]):
                for added, num_values in values.items():
                    extended[(fulfilled | added) & later] += count * num_values
            else:
                extended[fulfilled & later] += count
        counts = extended
    return sum(counts.values())
