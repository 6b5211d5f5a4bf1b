"""Search spaces: variables, and templates that turn their values into an architecture and a recipe (Sec. 3.5, Table 2).

A candidate is a row of integers, the index of each variable's value. Functions of many candidates work on arrays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from fbnetv3.arch import ArchDef, Row, arch_from_dict
from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES
from fbnetv3.arch.definition import MAX_CHANNELS, MAX_REPEAT, MAX_RESOLUTION
from fbnetv3.config.recipe import Recipe, recipe_from_dict
from fbnetv3.errors import FieldError, suggest
from fbnetv3.utils.checks import check_choice, check_int, check_keys, check_type, error_context, is_number
from fbnetv3.utils.text import first_few
from fbnetv3.utils.yaml_files import read_mapping

ARCHITECTURE = "architecture"
RECIPE = "recipe"
PARTS = (ARCHITECTURE, RECIPE)

DEFAULT_RESIZE_RATIO = 256 / 224
"""Short side before the center crop over the resolution, for templates without `resize`."""

_KEYS = ("name", "source", "variables", "architecture", "recipe")
# Bounds that catch a mistyped step or exponent before its values fill the memory
_MAX_VALUES = 100_000
_MAX_MAGNITUDE = 1e15
_ROW_KEYS = tuple(f.name for f in fields(Row))
# Upper bounds of the fields that determine how many blocks there are and how large they get
_LIMITS = {
    "resolution": MAX_RESOLUTION,
    "resize": 2 * MAX_RESOLUTION,
    "repeat": MAX_REPEAT,
    "channels": MAX_CHANNELS,
    "stride": 2,
}


# Fields with registered names
_REGISTRIES = {"block": BLOCK_SPECS, "se": SE_GATES, "act": ACTIVATIONS}


class SpaceError(FieldError):
    """An invalid search space, or a candidate outside its space."""


@dataclass(frozen=True)
class Variable:
    """A variable of a search space and its possible values."""

    name: str
    values: tuple[Any, ...]  # in order
    is_categorical: bool  # whether the order means nothing; otherwise, values are evenly spaced numbers
    part: str = ARCHITECTURE  # or RECIPE

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Space:
    """Variables of a search, and templates that turn a candidate's values into an architecture and a recipe."""

    name: str
    variables: tuple[Variable, ...]  # in the order in which candidates hold them
    architecture: Mapping[str, Any] | None = None  # template of an `ArchDef`; None if there is none
    recipe: Mapping[str, Any] | None = None  # template of a `Recipe`; None if there is none
    source: str = ""  # where the space comes from

    def __len__(self) -> int:
        """Return the number of variables."""
        return len(self.variables)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of values of each variable, (variables,)."""
        return np.array([len(variable) for variable in self.variables], np.int64)

    def num_candidates(self, part: str | None = None) -> int:
        """Return the number of distinct candidates, of one part or of both."""
        return math.prod(len(v) for v in self.variables if part in (None, v.part))

    def variable_indices(self, part: str) -> np.ndarray:
        """Return the positions of a part's variables in a candidate."""
        return np.array([i for i, v in enumerate(self.variables) if v.part == part], np.int64)

    def subspace(self, part: str) -> Space:
        """Return the space of one part's variables and template, for a search that leaves the other part fixed."""
        variables = tuple(variable for variable in self.variables if variable.part == part)
        if not variables:
            raise SpaceError(f"{self.name} has no {part} variables", "variables")
        other_templates: dict[str, Any] = {other: None for other in PARTS if other != part}
        return replace(self, variables=variables, **other_templates)

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

    def decode(self, candidate: np.ndarray) -> dict[str, Any]:
        """Return the value of each variable of one candidate."""
        (row,) = self.validate(np.asarray(candidate)[None])
        return {v.name: v.values[index] for v, index in zip(self.variables, row, strict=True)}

    def encode(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the candidate with these values; the inverse of `decode`."""
        names = tuple(variable.name for variable in self.variables)
        check_keys(values, SpaceError, names, names)
        candidate = []
        for variable in self.variables:
            value = values[variable.name]
            matches = [_equal(possible, value) for possible in variable.values]
            if True not in matches:
                raise SpaceError(f"{value!r} must be one of {first_few(variable.values)}", variable.name)
            candidate.append(matches.index(True))
        return np.array(candidate, np.int64)

    def encode_features(self, candidates: np.ndarray, part: str | None = None) -> np.ndarray:
        """Return the predictor's input (Sec. 3.1), float32 (N, features), of one part of the candidates or of both.

        Categories are one-hot, numbers scaled to [0, 1]; a variable with a single value is omitted.
        """
        candidates = self.validate(candidates)
        columns: list[np.ndarray] = [np.zeros((len(candidates), 0))]
        for index, variable in enumerate(self.variables):
            if len(variable) == 1 or part not in (None, variable.part):
                continue
            column = candidates[:, [index]]
            if variable.is_categorical:
                columns.append(column == np.arange(len(variable)))
            else:
                columns.append(column / (len(variable) - 1))
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
    place of values. A variable has either `range: [low, high, step]` (default step: 1), optionally multiplied by
    `scale`, or `choices`; and its `part`, architecture (the default) or recipe.
    """
    with error_context(file=str(path)):
        return space_from_dict(read_mapping(path, SpaceError, _KEYS))


def space_from_dict(data: Mapping[str, Any]) -> Space:
    """Build a space from a plain mapping with the keys of a space file."""
    check_keys(data, SpaceError, _KEYS, required=("name", "variables"))
    check_type(data["name"], "name", str, "a string", SpaceError)
    if not isinstance(data["variables"], Mapping) or not data["variables"]:
        raise SpaceError("must be a mapping with at least one variable", "variables")
    variables = []
    for name, entry in data["variables"].items():
        with error_context(f"variables.{name}"):
            variables.append(_parse_variable(str(name), entry))
    templates = {part: data[part] for part in PARTS if data.get(part) is not None}
    for part, template in templates.items():
        check_template(template, part, {v.name: v.values for v in variables if v.part == part})
    source = str(data.get("source", ""))
    return Space(data["name"], tuple(variables), source=source, **templates)


def _parse_variable(name: str, entry: Any) -> Variable:
    check_type(entry, "", Mapping, "a mapping such as {range: [1, 4]} or {choices: [a, b]}", SpaceError)
    check_keys(entry, SpaceError, ("range", "choices", "scale", "part"))
    if ("range" in entry) == ("choices" in entry):
        raise SpaceError("needs either a range or choices")
    part = entry.get("part", ARCHITECTURE)
    check_choice(part, "part", PARTS, SpaceError)
    if "range" in entry:
        values = _parse_range(entry["range"], entry.get("scale", 1))
        return Variable(name, values, False, part)
    check_keys(entry, SpaceError, ("choices", "part"))  # a scale applies only to a range
    choices = entry["choices"]
    is_list = isinstance(choices, list) and len(choices) > 0
    if not is_list or not all(map(_is_choice, choices)):
        raise SpaceError(f"{choices!r} must be a list of strings, numbers or booleans", "choices")
    if any(_equal(a, b) for i, a in enumerate(choices) for b in choices[:i]):
        raise SpaceError(f"{choices!r} contains duplicate values", "choices")
    return Variable(name, tuple(choices), True, part)


def _parse_range(bounds: Any, scale: Any) -> tuple[int | float, ...]:
    """Return the values low, low + step, ..., high, multiplied by a scale."""
    is_list = isinstance(bounds, list) and len(bounds) in (2, 3)
    if not is_list or not all(map(_is_finite, bounds)):
        raise SpaceError(f"{bounds!r} must be [low, high] or [low, high, step]", "range")
    if not _is_finite(scale) or scale == 0:
        raise SpaceError(f"{scale!r} must be a number other than 0", "scale")
    low, high, step = (*bounds, 1)[:3]
    if low > high or step <= 0 or (high - low) / step >= _MAX_VALUES:
        raise SpaceError(
            f"{bounds!r} must have low <= high, step > 0 and at most {_MAX_VALUES:,} values", "range"
        )
    # The range must end exactly at its upper bound
    num_steps = round((high - low) / step)
    if not math.isclose(low + num_steps * step, high, rel_tol=1e-9, abs_tol=1e-12):
        raise SpaceError(
            f"{bounds!r}: {high} is not reached in steps of {step}; change one of them", "range"
        )
    # Multiples of the step, so that rounding errors do not add up
    values = tuple(low + i * step for i in range(num_steps + 1))
    if scale == 1:
        return values
    # 20 * 1e-3 is slightly more than 0.02 in binary; ten digits are more than any recipe needs
    return tuple(float(f"{value * scale:.10g}") for value in values)


def _is_finite(value: Any) -> bool:
    return is_number(value, -_MAX_MAGNITUDE, _MAX_MAGNITUDE)


def _is_choice(value: Any) -> bool:
    return isinstance(value, (str, bool)) or _is_finite(value)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are the same, numbers up to rounding; True is not 1."""
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
    return type(a) is type(b) and a == b


def is_variable(value: Any) -> bool:
    """Return whether a template's value refers to a variable."""
    return isinstance(value, str) and value.startswith("$")


def fill_template(template: Any, values: Mapping[str, Any]) -> Any:
    """Return a template with every `$variable` replaced with its value."""
    if isinstance(template, Mapping):
        return {key: fill_template(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [fill_template(value, values) for value in template]
    return values[template[1:]] if is_variable(template) else template


def split_expansion(row: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Split a row whose expansion is a pair, [of the first block, of the rest] (Table 2's slash), in two.

    Also return which of the row's `repeat` blocks each of them describes: "all", "first" or "rest".
    """
    expansion = row.get("expansion")
    if not isinstance(expansion, list):
        return [(row, "all")]
    if len(expansion) != 2:
        raise SpaceError(
            f"{expansion!r} must be a value or a pair [first block, other blocks]", "expansion"
        )
    # The stride belongs to the first block
    first, rest = expansion
    return [
        ({**row, "expansion": first}, "first"),
        ({**row, "expansion": rest, "stride": 1}, "rest"),
    ]


def expand_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Turn the rows of a filled-in template into those of an architecture."""
    for template_row in rows:
        for row, blocks in split_expansion(template_row):
            repeat = row.get("repeat", 1)
            count = {"all": repeat, "first": 1, "rest": repeat - 1}[blocks]
            if count:
                yield {**row, "repeat": count}


def check_template(template: Any, part: str, values: Mapping[str, tuple[Any, ...]]) -> None:
    """Require a well-formed template, given the possible values of its part's variables.

    The meaning of its rows is checked when a candidate's architecture is built.
    """
    check_type(template, part, Mapping, "a mapping", SpaceError)
    # A tuple takes the place of each variable
    try:
        filled = fill_template(template, values)
    except KeyError as error:
        (name,) = error.args
        raise SpaceError(
            f"${name} is not a variable of the {part}: {suggest(name, values)}", part
        ) from None
    if part == ARCHITECTURE:
        with error_context(part):
            _check_architecture(filled)


def _check_architecture(template: Mapping[str, Any]) -> None:
    check_keys(template, SpaceError, ("resolution", "resize", "stages"), required=("resolution", "stages"))
    _check_values({**template, "stages": None})
    _check_entries(template["stages"], "stages", ("rows",), required=("rows",))
    for s, stage in enumerate(template["stages"]):
        with error_context(f"stages[{s}]"):
            _check_entries(stage["rows"], "rows", _ROW_KEYS, required=("block", "channels"))
            for r, row in enumerate(stage["rows"]):
                with error_context(f"rows[{r}]"):
                    for single, _ in split_expansion(row):
                        _check_values(single)


def _check_entries(entries: Any, field: str, allowed: tuple[str, ...], required: tuple[str, ...]) -> None:
    if not isinstance(entries, list) or not entries:
        raise SpaceError(f"{entries!r} must be a list with at least one entry", field)
    for index, entry in enumerate(entries):
        with error_context(f"{field}[{index}]"):
            check_type(entry, "", Mapping, f"a mapping with the keys {', '.join(required)}", SpaceError)
            check_keys(entry, SpaceError, allowed, required)


def _check_values(fields: Mapping[str, Any]) -> None:
    for field, value in fields.items():
        for possible in value if isinstance(value, tuple) else (value,):
            if field in _LIMITS:
                check_int(possible, field, 1, _LIMITS[field], SpaceError)
            elif field in _REGISTRIES:
                _REGISTRIES[field].check(possible, field, SpaceError)
            elif isinstance(possible, (Mapping, list)):
                raise SpaceError(f"{possible!r} must be a single value", field)
