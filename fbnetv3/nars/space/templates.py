"""Templates of architectures and recipes: nested data in which `$variable` stands for a candidate's value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fbnetv3.arch import Row
from fbnetv3.arch.definition import MAX_CHANNELS, MAX_REPEAT, MAX_RESOLUTION
from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_int, check_keys, check_type

if TYPE_CHECKING:
    from fbnetv3.nars.space.search_space import Variable

ARCHITECTURE = "architecture"
RECIPE = "recipe"
PARTS = (ARCHITECTURE, RECIPE)

_TEMPLATE_KEYS = ("resolution", "resize", "stages")
_ROW_KEYS = tuple(f.name for f in fields(Row))
# Fields of a row that determine how many blocks there are and how large they get.
_ROW_LIMITS = {"repeat": MAX_REPEAT, "channels": MAX_CHANNELS, "stride": 2}


class SpaceError(FieldError):
    """An invalid search space, or a candidate outside its space."""


def is_variable(value: Any) -> bool:
    """Return whether a template's value refers to a variable."""
    return isinstance(value, str) and value.startswith("$")


def fill_template(template: Any, values: Mapping[str, Any]) -> Any:
    """Return a template with every `$variable` replaced by its value."""
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
            raise SpaceError(f"{expansion!r} is neither a value nor a pair [first block, other blocks]", "expansion")
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

    What its rows mean is checked when a candidate's architecture is built.

    Args:
        template: a space's template, or None.
        part: architecture or recipe.
        variables: the space's variables by name.
    """
    if template is None:
        return
    check_type(template, part, Mapping, "a mapping", SpaceError)
    _check_references(template, part, part, variables)
    if part == ARCHITECTURE:
        try:
            _check_architecture(template, variables)
        except SpaceError as error:
            raise error.within(part) from None


def _check_references(value: Any, field: str, part: str, variables: Mapping[str, Variable]) -> None:
    """Require that every `$variable` in a template is a variable of the template's part."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_references(item, f"{field}.{key}", part, variables)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_references(item, f"{field}[{index}]", part, variables)
    elif is_variable(value):
        if value[1:] not in variables:
            raise SpaceError(f"{value} is not a variable of the space", field)
        if variables[value[1:]].part != part:
            raise SpaceError(f"{value} belongs to the {variables[value[1:]].part}", field)


def _check_architecture(template: Mapping[str, Any], variables: Mapping[str, Variable]) -> None:
    check_keys(template, SpaceError, _TEMPLATE_KEYS, required=("resolution", "stages"))
    _check_values(template["resolution"], "resolution", MAX_RESOLUTION, variables)
    _check_values(template.get("resize", 1), "resize", 2 * MAX_RESOLUTION, variables)
    check_type(template["stages"], "stages", list, "a list of stages", SpaceError)
    if not template["stages"]:
        raise SpaceError("is empty: a network needs at least one stage", "stages")
    for s, stage in enumerate(template["stages"]):
        # a stage has no other keys than its rows
        rows = stage.get("rows") if isinstance(stage, Mapping) and set(stage) == {"rows"} else None
        if not isinstance(rows, list) or not rows:
            raise SpaceError("is not a mapping with the key rows, a list of rows", f"stages[{s}]")
        for r, row in enumerate(rows):
            try:
                _check_row(row, variables)
            except SpaceError as error:
                raise error.within(f"stages[{s}].rows[{r}]") from None


def _check_row(row: Any, variables: Mapping[str, Variable]) -> None:
    check_type(row, "", Mapping, "a mapping such as {block: mbconv, kernel: 3, ...}", SpaceError)
    check_keys(row, SpaceError, _ROW_KEYS, required=("block", "channels"))
    list(split_expansion([row]))  # checks the expansion
    for key, limit in _ROW_LIMITS.items():
        _check_values(row.get(key, 1), key, limit, variables)
    for key, value in row.items():
        if isinstance(value, Mapping) or (isinstance(value, list) and key != "expansion"):
            raise SpaceError(f"{value!r} is not a single value", key)


def _check_values(value: Any, field: str, limit: int, variables: Mapping[str, Variable]) -> None:
    """Require that a template's value, or each value of its variable, is an integer in [1, limit]."""
    for possible in variables[value[1:]].values if is_variable(value) else (value,):
        check_int(possible, field, 1, limit, SpaceError)
