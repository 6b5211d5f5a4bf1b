"""Search spaces: variables, and templates that turn their values into an architecture and a recipe (Sec. 3.5, Table 2).

A candidate is a row of integers, the index of each variable's value. Functions of many candidates work on arrays.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.arch import ArchDef, arch_from_dict
from fbnetv3.config.recipe import Recipe, recipe_from_dict
from fbnetv3.nars.space.conditions import (
    ParentIndices,
    active_variables,
    count_candidates,
    parse_conditions,
    resolve_conditions,
)
from fbnetv3.nars.space.templates import check_template, expand_rows, fill_template
from fbnetv3.nars.space.variables import ARCHITECTURE, PARTS, RECIPE, SpaceError, Variable, parse_variable
from fbnetv3.utils.checks import check_keys, check_type, error_context
from fbnetv3.utils.yaml_files import read_mapping

DEFAULT_RESIZE_RATIO = 256 / 224
"""Short side before the center crop over the resolution, for templates without `resize`."""

_KEYS = ("name", "source", "variables", "architecture", "recipe")


@dataclass(frozen=True)
class Space:
    """Variables of a search, and templates that turn a candidate's values into an architecture and a recipe.

    A variable is active in a candidate if its conditions hold. Inactive variables have no value; their index is 0 in
    the canonical form of a candidate, and is ignored in others.
    """

    name: str
    variables: tuple[Variable, ...]  # in the order in which candidates hold them
    architecture: Mapping[str, Any] | None = None  # template of an `ArchDef`; None if there is none
    recipe: Mapping[str, Any] | None = None  # template of a `Recipe`; None if there is none
    source: str = ""  # where the space comes from

    def __post_init__(self) -> None:
        _ = self._conditions  # find errors early

    def __repr__(self) -> str:
        return f"Space({self.name}: {len(self)} variable{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        """Return the number of variables."""
        return len(self.variables)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of values of each variable, (variables,)."""
        return np.array([len(variable) for variable in self.variables], np.int64)

    @cached_property
    def is_categorical(self) -> np.ndarray:
        """Whether the order of each variable's values means nothing, bool (variables,)."""
        return np.array([variable.is_categorical for variable in self.variables], bool)

    @cached_property
    def _conditions(self) -> tuple[tuple[ParentIndices, ...], ...]:
        return resolve_conditions(self.variables)

    def num_candidates(self, part: str | None = None) -> int:
        """Return the number of distinct candidates, of one part or of both; see `subspace`."""
        variables = self.variables
        if part is not None:
            variables = self.select_variables([v.name for v in self.variables if v.part == part])
        return count_candidates([len(v) for v in variables], resolve_conditions(variables))

    def variable_indices(self, part: str) -> np.ndarray:
        """Return the positions of a part's variables in a candidate."""
        return np.array([i for i, v in enumerate(self.variables) if v.part == part], np.int64)

    def subspace(self, part: str) -> Space:
        """Return the space of one part's variables and template, for a search that leaves the other part fixed.

        A condition on a variable of the other part is dropped: without other conditions, the variable is always active.
        """
        variables = self.select_variables([v.name for v in self.variables if v.part == part])
        if not variables:
            raise SpaceError(f"{self.name} has no {part} variables", "variables")
        other_templates: dict[str, Any] = {other: None for other in PARTS if other != part}
        return replace(self, variables=variables, **other_templates)

    def select_variables(self, names: Collection[str]) -> tuple[Variable, ...]:
        """Return some of the variables, without conditions on the others."""
        return tuple(
            replace(variable, when=tuple(c for c in variable.when if c.parent in names))
            for variable in self.variables
            if variable.name in names
        )

    def validate(self, candidates: np.ndarray) -> np.ndarray:
        """Return candidates as int64 (N, variables).

        Raises:
            SpaceError: a candidate is outside the space, or the array has another shape or type.
        """
        array = np.asarray(candidates)
        if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != len(self):
            shape = f"(N, {len(self)})"
            raise SpaceError(
                f"candidates must be integers of shape {shape}, not {array.dtype} {array.shape}"
            )
        invalid = np.argwhere((array < 0) | (array >= self.sizes))
        if len(invalid):
            row, column = invalid[0]
            name = self.variables[column].name
            raise SpaceError(f"index {array[row, column]} must be in [0, {self.sizes[column] - 1}]", name)
        return array.astype(np.int64, copy=False)

    def active(self, candidates: np.ndarray) -> np.ndarray:
        """Return which variables are active, bool (N, variables), in candidates, integers (N, variables)."""
        return active_variables(self.validate(candidates), self._conditions)

    def canonicalize(self, candidates: np.ndarray) -> np.ndarray:
        """Return candidates, integers (N, variables), with the index 0 for inactive variables, int64 (N, variables).

        Candidates with the same values of active variables have the same canonical form.
        """
        candidates = self.validate(candidates)
        return np.where(active_variables(candidates, self._conditions), candidates, 0)

    def positions(self, candidates: np.ndarray) -> np.ndarray:
        """Return coordinates of the values of candidates, integers (N, variables), for distances between them.

        They are float64 (N, variables) in [0, 1]: proportional to the logarithm of the value for variables on a log
        scale, and to the index for others; 0 for inactive variables and for those with a single value.
        """
        candidates = self.canonicalize(candidates)
        positions = np.zeros(candidates.shape)
        for index, variable in enumerate(self.variables):
            positions[:, index] = variable.positions(candidates[:, index])
        return positions

    def from_unit(self, points: np.ndarray) -> np.ndarray:
        """Map points of the unit cube, (N, variables) in [0, 1), to canonical candidates, int64 (N, variables).

        Uniform points give values that are uniform in the coordinates of `positions`.
        """
        return self.canonicalize(self.indices_from_unit(points))

    def indices_from_unit(self, points: np.ndarray) -> np.ndarray:
        """Map points like `from_unit`, but give inactive variables a value as well."""
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != len(self):
            raise SpaceError(f"points must have the shape (N, {len(self)}), not {points.shape}")
        indices = np.zeros(points.shape, np.int64)
        for column, variable in enumerate(self.variables):
            indices[:, column] = variable.from_unit(points[:, column])
        return indices

    def neighbors(
        self, candidate: np.ndarray, rng: np.random.Generator, count_per_variable: int = 32
    ) -> np.ndarray:
        """Return canonical candidates that differ from a candidate in one active variable, int64 (N, variables).

        They have all other values of variables with few. Variables with more than `count_per_variable` others take up
        to that number of values: some drawn from all, and most at several distances from the present value. Variables
        that become active by the change have random values.
        """
        (candidate,) = self.canonicalize(np.asarray(candidate)[None])
        (active,) = self.active(candidate[None])
        neighbors = [candidate[None][:0]]
        for index in np.flatnonzero(active):
            present = candidate[[index]]
            values = self.variables[index].variations(present, count_per_variable, rng)
            values = np.setdiff1d(values, present)
            changed = np.repeat(candidate[None], len(values), 0)
            changed[:, index] = values
            neighbors.append(changed)
        return self.complete_changes(candidate[None], np.concatenate(neighbors), rng)

    def complete_changes(
        self, before: np.ndarray, changed: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return changed candidates, integers (N, variables), in canonical form, int64 (N, variables).

        Variables that are active in them, but not in the candidates `before`, (N or 1, variables), get random values.
        """
        activated = self.active(changed) & ~self.active(before)
        if activated.any():
            changed = np.where(activated, self.indices_from_unit(rng.random(changed.shape)), changed)
        return self.canonicalize(changed)

    def decode(self, candidate: np.ndarray) -> dict[str, Any]:
        """Return the value of each active variable of one candidate, integers (variables,)."""
        (values,) = self.decode_all(np.asarray(candidate)[None])
        return values

    def decode_all(self, candidates: np.ndarray) -> list[dict[str, Any]]:
        """Return the values of active variables of each of the candidates, integers (N, variables)."""
        rows = self.validate(candidates).tolist()
        return [
            {
                v.name: v.values[i]
                for v, i, has_value in zip(self.variables, *pair, strict=True)
                if has_value
            }
            for pair in zip(rows, self.active(candidates).tolist(), strict=True)
        ]

    def encode(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the canonical candidate with these values of its active variables; the inverse of `decode`.

        Inactive variables may be None.
        """
        check_keys(values, SpaceError, tuple(variable.name for variable in self.variables))
        candidate = np.zeros((1, len(self)), np.int64)
        for position, variable in enumerate(self.variables):
            # It depends only on variables before it
            if self.active(candidate)[0, position]:
                candidate[0, position] = _encode_value(variable, values)
            elif values.get(variable.name) is not None:
                value = values[variable.name]
                conditions = " and ".join(map(str, variable.when))
                raise SpaceError(f"{value!r} must be left out, except where {conditions}", variable.name)
        return candidate[0]

    def encode_features(self, candidates: np.ndarray, part: str | None = None) -> np.ndarray:
        """Return the predictor's input (Sec. 3.1), float32 (N, features), of one part of the candidates or of both.

        Categories are one-hot, others are `positions` in [0, 1]. All features of an inactive variable are 0.5, between
        those of its values. A variable with a single value is omitted.
        """
        candidates = self.validate(candidates)
        active = self.active(candidates)
        columns: list[np.ndarray] = [np.zeros((len(candidates), 0))]
        for index, variable in enumerate(self.variables):
            if len(variable) == 1 or part not in (None, variable.part):
                continue
            column = candidates[:, [index]]
            features = variable.positions(column)
            if variable.is_categorical:
                features = column == np.arange(len(variable))
            columns.append(np.where(active[:, [index]], features, 0.5))
        return np.concatenate(columns, 1, dtype=np.float32, casting="unsafe")

    def build_arch(self, candidate: np.ndarray, name: str) -> ArchDef:
        """Build a candidate's architecture from the template.

        Raises:
            SpaceError: the space has no architecture template.
            ArchError: the values do not form a valid network.
        """
        data = self._fill_template(ARCHITECTURE, candidate)
        # With all values known, rows with two expansions become two rows
        data["stages"] = [{"rows": [*expand_rows(stage["rows"])]} for stage in data["stages"]]
        data.setdefault("resize", round(data["resolution"] * DEFAULT_RESIZE_RATIO))
        return arch_from_dict({**data, "name": name})

    def build_recipe(self, candidate: np.ndarray) -> Recipe:
        """Build a candidate's recipe from the template.

        Raises:
            SpaceError: the space has no recipe template.
            RecipeError: the values do not form a valid recipe.
        """
        return recipe_from_dict(self._fill_template(RECIPE, candidate))

    def _fill_template(self, part: str, candidate: np.ndarray) -> dict[str, Any]:
        template = self.architecture if part == ARCHITECTURE else self.recipe
        if template is None:
            raise SpaceError(f"{self.name} has no {part} template", part)
        return fill_template(template, self.decode(candidate))


def load_space(path: str | os.PathLike) -> Space:
    """Load a space from a YAML file.

    The file holds `name`, `source`, `variables` and, where candidates are networks, the templates `architecture` (an
    architecture file's `resolution`, `resize` and `stages`) and `recipe` (a recipe file's fields), with `$variable` in
    place of values.

    A variable has either a `range` or `choices`. The range `[low, high, step]` consists of evenly spaced numbers;
    without a step, it consists of integers or, if a bound is not an integer, of all numbers in between. `scale`
    multiplies its numbers, and with `log: true` distances are those of logarithms. Choices have an order only with
    `ordered: true`. A variable's `part` is architecture (the default) or recipe. `when` maps variables before it to a
    value, or a list of values, that they must have for the variable to be active.
    """
    with error_context(file=str(path)):
        return space_from_dict(read_mapping(path, SpaceError, _KEYS))


def space_from_dict(data: Mapping[str, Any]) -> Space:
    """Build a space from a plain mapping with the keys of a space file; see `load_space`."""
    check_keys(data, SpaceError, _KEYS, required=("name", "variables"))
    check_type(data["name"], "name", str, "a string", SpaceError)
    if not isinstance(data["variables"], Mapping) or not data["variables"]:
        raise SpaceError("must be a mapping with at least one variable", "variables")
    variables: dict[str, Variable] = {}
    for name, entry in data["variables"].items():
        with error_context(f"variables.{name}"):
            variable = parse_variable(str(name), entry)
            conditions = parse_conditions(entry.get("when", {}), variables)
        variables[str(name)] = replace(variable, when=conditions)
    templates = {part: data[part] for part in PARTS if data.get(part) is not None}
    source = str(data.get("source", ""))
    space = Space(data["name"], tuple(variables.values()), source=source, **templates)
    for part, template in templates.items():
        check_template(template, part, [v for v in space.variables if v.part == part])
    return space


def _encode_value(variable: Variable, values: Mapping[str, Any]) -> int:
    """Return the index of an active variable's value."""
    if variable.name not in values:
        raise SpaceError("is missing", variable.name)
    value = values[variable.name]
    index = variable.index(value)
    if index is None:
        raise SpaceError(f"{value!r} must be {variable.describe_values()}", variable.name)
    return index
