"""Templates of architectures and recipes: nested data in which `$variable` stands for a candidate's value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fbnetv3.arch import Row
from fbnetv3.arch.definition import MAX_CHANNELS, MAX_REPEAT, MAX_RESOLUTION
from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_int, check_keys, check_type, error_context

if TYPE_CHECKING:
    from fbnetv3.nars.space.search_space import Variable

ARCHITECTURE = "architecture"
RECIPE = "recipe"
PARTS = (ARCHITECTURE, RECIPE)

_TEMPLATE_KEYS = ("resolution", "resize", "stages")
_ROW_KEYS = tuple(f.name for f in fields(Row))
# Upper bounds of the fields that determine how many blocks there are and how large they get
_ROW_LIMITS = {"repeat": MAX_REPEAT, "channels": MAX_CHANNELS, "stride": 2}


class SpaceError(FieldError):
    """An invalid search space, or a candidate outside its space."""


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


def split_expansion(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Split template rows whose expansion is a pair, [of the first block, of the rest] (Table 2's slash), in two.

    Yields:
        A row with a single expansion; and which of the template row's `repeat` blocks it describes: "all", "first" or
        "rest".
    """
    for row in rows:
        expansion = row.get("expansion")
        if not isinstance(expansion, list):
            yield dict(row), "all"
            continue
        if len(expansion) != 2:
            raise SpaceError(f"{expansion!r} must be a value or a pair [first block, other blocks]", "expansion")
        # The stride belongs to the first block
        first, rest = expansion
        yield {**row, "expansion": first}, "first"
        yield {**row, "expansion": rest, "stride": 1}, "rest"


def expand_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Turn the rows of a filled-in template into those of an architecture."""
    for row, blocks in split_expansion(rows):
        repeat = row.get("repeat", 1)
        count = {"all": repeat, "first": 1, "rest": repeat - 1}[blocks]
        if count:
            yield {**row, "repeat": count}


def check_template(template: Any, part: str, variables: Mapping[str, Variable]) -> None:
    """Require a well-formed template whose variables exist and belong to its part.

    The meaning of its rows is checked when a candidate's architecture is built.

    Args:
        template: a space's template, or None.
        part: architecture or recipe.
        variables: the space's variables by name.
    """
    if template is None:
        return
    check_type(template, part, Mapping, "a mapping", SpaceError)
    for field, name in _references(template, part):
        if name not in variables:
            raise SpaceError(f"${name} is not a variable of the space", field)
        if variables[name].part != part:
            raise SpaceError(f"${name} belongs to the {variables[name].part}", field)
    if part == ARCHITECTURE:
        with error_context(part):
            _check_architecture(template, variables)


def _references(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield the field and the name of every `$variable` in a template."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(item, f"{field}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, f"{field}[{index}]")
    elif is_variable(value):
        yield field, value[1:]


def _check_architecture(template: Mapping[str, Any], variables: Mapping[str, Variable]) -> None:
    check_keys(template, SpaceError, _TEMPLATE_KEYS, required=("resolution", "stages"))
    _check_values(template["resolution"], "resolution", MAX_RESOLUTION, variables)
    _check_values(template.get("resize", 1), "resize", 2 * MAX_RESOLUTION, variables)
    _check_list(template["stages"], "stages")
    for s, stage in enumerate(template["stages"]):
        with error_context(f"stages[{s}]"):
            # A stage has no keys other than its rows
            check_type(stage, "", Mapping, "a mapping with the key rows", SpaceError)
            check_keys(stage, SpaceError, ("rows",), required=("rows",))
            _check_list(stage["rows"], "rows")
            for r, row in enumerate(stage["rows"]):
                with error_context(f"rows[{r}]"):
                    _check_row(row, variables)


def _check_row(row: Any, variables: Mapping[str, Variable]) -> None:
    check_type(row, "", Mapping, "a mapping such as {block: mbconv, kernel: 3, ...}", SpaceError)
    check_keys(row, SpaceError, _ROW_KEYS, required=("block", "channels"))
    list(split_expansion([row]))  # checks the expansion
    for key, value in row.items():
        if isinstance(value, (Mapping, list)) and key != "expansion":
            raise SpaceError(f"{value!r} must be a single value", key)
    for key, limit in _ROW_LIMITS.items():
        _check_values(row.get(key, 1), key, limit, variables)


def _check_list(value: Any, field: str) -> None:
    if not isinstance(value, list) or not value:
        raise SpaceError(f"{value!r} must be a list with at least one entry", field)


def _check_values(value: Any, field: str, limit: int, variables: Mapping[str, Variable]) -> None:
    """Require that a template's value, or each value of its variable, is an integer in [1, limit]."""
    for possible in variables[value[1:]].values if is_variable(value) else (value,):
        check_int(possible, field, 1, limit, SpaceError)
