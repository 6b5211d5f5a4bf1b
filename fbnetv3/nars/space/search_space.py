"""A search space: variables, and how their values make an architecture and a training recipe (Sec. 3.5, Table 2).

Candidates are rows of integers, the index of each variable's value; whatever is done to many is done to arrays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.arch import ArchDef, arch_from_dict
from fbnetv3.config.recipe import Recipe, recipe_from_dict
from fbnetv3.nars.space.templates import (
    ARCHITECTURE,
    PARTS,
    RECIPE,
    SpaceError,
    check_template,
    filled,
    rows_of,
)
from fbnetv3.utils.yaml_files import check_keys, read_mapping

# Short side before the centre crop, as a multiple of the resolution, where a space's template does not say.
RESIZE = 256 / 224

_KEYS = ("name", "source", "variables", "architecture", "recipe")
_VARIABLE_KEYS = ("range", "choices", "scale", "part")
_MOST_VALUES = 100_000
_MOST_CHOICES = 1_000
# What a number of a range may be at most: far beyond any use, and far from where floating point ends.
_LARGEST = 1e15


@dataclass(frozen=True)
class Variable:
    """One thing that is searched.

    Attributes:
        name: what it is called.
        values: what it can be, in order.
        is_category: whether the order means nothing; else the values are numbers, equally spaced.
        part: "architecture" or "recipe".
    """

    name: str
    values: tuple[Any, ...]
    is_category: bool
    part: str = ARCHITECTURE

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Space:
    """What is searched, and what a candidate stands for.

    Attributes:
        name: its name.
        variables: in the order in which they stand in a candidate.
        architecture: template of an `ArchDef`, `$variable` in place of a value; None where candidates are none.
        recipe: template of a `Recipe`, or None.
        source: where it comes from, for people.
    """

    name: str
    variables: tuple[Variable, ...]
    architecture: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    source: str = ""

    def __len__(self) -> int:
        """Variables in a candidate."""
        return len(self.variables)

    @cached_property
    def sizes(self) -> np.ndarray:
        """How many values each variable has, (variables,)."""
        return np.array([len(variable) for variable in self.variables], np.int64)

    def size(self, part: str | None = None) -> int:
        """How many candidates there are, of one part or in all."""
        return math.prod(len(v) for v in self.variables if part in (None, v.part))

    def columns_of(self, part: str) -> np.ndarray:
        """Which columns of a candidate belong to a part."""
        return np.array([i for i, variable in enumerate(self.variables) if variable.part == part], np.int64)

    def only(self, part: str) -> Space:
        """The space of one part's variables and template alone, for a search that leaves the other part as it is.

        Raises:
            SpaceError: it has no variables of that part.
        """
        variables = tuple(variable for variable in self.variables if variable.part == part)
        if not variables:
            raise SpaceError(f"{self.name} has no variables of the {part}", "variables")
        others: dict[str, Any] = {other: None for other in PARTS if other != part}
        return replace(self, variables=variables, **others)

    def check(self, candidates: np.ndarray) -> np.ndarray:
        """The candidates as an array of integers (N, variables).

        Raises:
            SpaceError: another shape or type, or a value outside its variable's.
        """
        found = np.asarray(candidates)
        if found.ndim != 2 or found.shape[1] != len(self) or not np.issubdtype(found.dtype, np.integer):
            raise SpaceError(f"candidates are (N, {len(self)}) integers, not {found.dtype} {found.shape}")
        wrong = np.argwhere((found < 0) | (found >= self.sizes))
        if len(wrong):
            row, column = wrong[0]
            variable = self.variables[column]
            raise SpaceError(f"{found[row, column]} is none of its {len(variable)} values", variable.name)
        return found.astype(np.int64, copy=False)

    def decode(self, candidate: np.ndarray) -> dict[str, Any]:
        """The value of each variable of one candidate."""
        (row,) = self.check(np.asarray(candidate)[None])
        return {variable.name: variable.values[index] for variable, index in zip(self.variables, row, strict=True)}

    def candidate(self, values: Mapping[str, Any]) -> np.ndarray:
        """The candidate with these values.

        Raises:
            SpaceError: a variable is missing or unknown, or has no such value.
        """
        names = tuple(v.name for v in self.variables)
        check_keys(values, SpaceError, names, names)
        found = []
        for variable in self.variables:
            value = values[variable.name]
            index = next((i for i, known in enumerate(variable.values) if _same(known, value)), None)
            if index is None:
                raise SpaceError(f"{value!r} is none of its values", variable.name)
            found.append(index)
        return np.array(found, np.int64)

    def encode(self, candidates: np.ndarray, part: str | None = None) -> np.ndarray:
        """Candidates as a predictor sees them (Sec. 3.1): categories one-hot, numbers scaled to [0, 1].

        A variable with one value says nothing and is left out.

        Returns:
            float32 (N, features), of one part or of all.
        """
        candidates = self.check(candidates)
        columns = []
        for index, variable in enumerate(self.variables):
            if len(variable) == 1 or part not in (None, variable.part):
                continue
            column = candidates[:, index]
            if variable.is_category:
                columns.append(column[:, None] == np.arange(len(variable)))
            else:
                columns.append(column[:, None] / (len(variable) - 1))
        if not columns:
            return np.zeros((len(candidates), 0), np.float32)
        return np.concatenate(columns, 1, dtype=np.float32, casting="unsafe")

    def arch(self, candidate: np.ndarray, name: str, source: str = "") -> ArchDef:
        """The architecture that a candidate stands for.

        Raises:
            SpaceError: the space has no architectures.
            ArchError: the candidate makes no network.
        """
        if self.architecture is None:
            raise SpaceError("the space has no template", ARCHITECTURE)
        data = filled(self.architecture, self.decode(candidate))
        data["stages"] = [{**stage, "rows": [*rows_of(stage["rows"])]} for stage in data["stages"]]
        data.setdefault("resize", round(data["resolution"] * RESIZE))
        return arch_from_dict({**data, "name": name, "source": source})

    def make_recipe(self, candidate: np.ndarray) -> Recipe:
        """The recipe that a candidate stands for.

        Raises:
            SpaceError: the space has no recipes.
            RecipeError: the candidate makes no recipe.
        """
        if self.recipe is None:
            raise SpaceError("the space has no template", RECIPE)
        return recipe_from_dict(filled(self.recipe, self.decode(candidate)))


def _same(a: Any, b: Any) -> bool:
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool) or not (isinstance(a, numbers) and isinstance(b, numbers)):
        return type(a) is type(b) and a == b
    try:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
    except OverflowError:  # a whole number beyond all of floating point
        return a == b


def load_space(path: str | os.PathLike) -> Space:
    """Read a space from YAML.

    A file holds `name`, `source`, `variables` and, where candidates are networks, the templates `architecture` (an
    architecture file's `resolution`, `resize` and `stages`) and `recipe` (a recipe file's fields), with `$variable` in
    place of values. A variable has either `range: [lowest, highest, step]` (the step is 1 where it is not given), which
    `scale` may multiply, or `choices`; and its `part`, architecture or recipe.

    Raises:
        SpaceError: the file is missing, not YAML, or makes no sense. The text names file and field.
    """
    try:
        return space_from_dict(read_mapping(path, SpaceError, _KEYS))
    except SpaceError as error:
        raise error.in_file(str(path)) from None


def space_from_dict(data: Mapping[str, Any]) -> Space:
    """A space from a plain mapping.

    Raises:
        SpaceError: names the field at fault.
    """
    check_keys(data, SpaceError, _KEYS, required=("name", "variables"))
    for key in ("name", "source"):
        if not isinstance(data.get(key, ""), str):
            raise SpaceError(f"{data[key]!r} is not text", key)
    variables = data["variables"]
    if not isinstance(variables, Mapping) or not variables:
        raise SpaceError("is not a mapping from names to ranges and choices", "variables")
    found = []
    if len({str(name) for name in variables}) < len(variables):
        raise SpaceError("two names are the same as text", "variables")
    for name, entry in variables.items():
        try:
            found.append(_variable(str(name), entry))
        except SpaceError as error:
            raise error.within(f"variables.{name}") from None
    space = Space(data["name"], tuple(found), data.get("architecture"), data.get("recipe"), data.get("source", ""))
    for part in PARTS:
        check_template(getattr(space, part), part, {v.name: v for v in found})
    return space


def _variable(name: str, entry: Any) -> Variable:
    if not isinstance(entry, Mapping):
        raise SpaceError("is not a mapping such as {range: [1, 4]} or {choices: [a, b]}")
    check_keys(entry, SpaceError, _VARIABLE_KEYS)
    if ("range" in entry) == ("choices" in entry):
        raise SpaceError("needs a range or choices, and not both")
    part = entry.get("part", ARCHITECTURE)
    if part not in PARTS:
        raise SpaceError(f"{part!r} is neither architecture nor recipe", "part")
    if "range" in entry:
        return Variable(name, _range(entry["range"], entry.get("scale", 1)), False, part)
    choices = entry["choices"]
    if "scale" in entry:
        raise SpaceError("belongs to a range", "scale")
    if not isinstance(choices, list) or not choices:
        raise SpaceError(f"{choices!r} is not a list of values", "choices")
    if not all(isinstance(choice, (str, int, float, bool)) for choice in choices):
        raise SpaceError(f"{choices!r} holds what is neither text nor number nor true or false", "choices")
    if len(choices) > _MOST_CHOICES:
        raise SpaceError(f"{len(choices)} choices are more than {_MOST_CHOICES}", "choices")
    if any(isinstance(choice, float) and math.isnan(choice) for choice in choices):
        raise SpaceError(f"{choices!r} holds what is no number", "choices")
    if any(_same(a, b) for i, a in enumerate(choices) for b in choices[:i]):
        raise SpaceError(f"{choices!r} has a value twice", "choices")
    return Variable(name, tuple(choices), True, part)


def _range(value: Any, scale: Any) -> tuple[int | float, ...]:
    if not isinstance(value, list) or len(value) not in (2, 3) or not all(_is_number(v) for v in value):
        raise SpaceError(f"{value!r} is not [lowest, highest] or [lowest, highest, step]", "range")
    if not _is_number(scale) or scale == 0:
        raise SpaceError(f"{scale!r} is not a number other than 0", "scale")
    low, high, step = (*value, 1)[:3]
    if low > high or step <= 0:
        raise SpaceError(f"{value!r} has no values: lowest <= highest and step > 0 are wanted", "range")
    if (high - low) / step >= _MOST_VALUES:
        raise SpaceError(f"{value!r} has more than {_MOST_VALUES} values", "range")
    steps = round((high - low) / step)
    if not math.isclose(low + steps * step, high, rel_tol=1e-9, abs_tol=1e-12):
        raise SpaceError(f"{value!r}: {high} is not reached in steps of {step}", "range")
    values = [low + i * step for i in range(steps + 1)]
    # 20 * 1e-3 is 0.02 and a bit in binary; ten digits are more than any recipe needs
    found = tuple(values) if scale == 1 else tuple(float(f"{v * scale:.10g}") for v in values)
    if len(set(found)) < len(found):
        raise SpaceError(f"{value!r} and the scale {scale!r} make values that cannot be told apart", "range")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
