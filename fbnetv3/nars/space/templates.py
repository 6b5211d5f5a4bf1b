"""Templates of a search space: architectures and recipes with `$variable` in place of values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from fbnetv3.arch import Row
from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES
from fbnetv3.arch.definition import MAX_CHANNELS, MAX_REPEAT, MAX_RESOLUTION
from fbnetv3.config.recipe import Recipe
from fbnetv3.errors import suggest
from fbnetv3.nars.space.variables import ARCHITECTURE, SpaceError, Variable
from fbnetv3.utils.checks import check_int, check_keys, check_type, error_context

_ROW_KEYS = tuple(f.name for f in fields(Row))
# Fields that an architecture, a row or a recipe cannot leave out
_REQUIRED = ("resolution", *(f.name for cls in (Row, Recipe) for f in fields(cls) if f.default is MISSING))
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
# The only field of an architecture that is not an integer or a name
_REAL_FIELD = "expansion"


def is_variable(value: Any) -> bool:
    """Return whether a template's value refers to a variable."""
    return isinstance(value, str) and value.startswith("$")


def fill_template(template: Any, values: Mapping[str, Any]) -> Any:
    """Return a template with every `$variable` replaced with its value.

    An entry of a mapping whose variable has no value is left out.
    """
    if isinstance(template, Mapping):
        return {
            key: fill_template(value, values)
            for key, value in template.items()
            if not is_variable(value) or value[1:] in values
        }
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


def check_template(template: Any, part: str, variables: Iterable[Variable]) -> None:
    """Require a well-formed template of the part to which the variables belong.

    The meaning of its rows is checked when a candidate's architecture is built.
    """
    check_type(template, part, Mapping, "a mapping", SpaceError)
    by_name = {variable.name: variable for variable in variables}
    with error_context(part):
        _check_references(template, part, by_name)
        if part == ARCHITECTURE:
            # The variables themselves take the place of their values
            _check_architecture(fill_template(template, by_name))


def _check_references(template: Any, part: str, variables: Mapping[str, Variable], key: str = "") -> None:
    """Require that variables exist, and that those with conditions can be left out; `key` is that of the template."""
    if isinstance(template, Mapping):
        for name, value in template.items():
            _check_references(value, part, variables, str(name))
    elif isinstance(template, list):
        for value in template:
            _check_references(value, part, variables)
    elif is_variable(template):
        name = template[1:]
        if name not in variables:
            raise SpaceError(f"{template} is not a variable of the {part}: {suggest(name, variables)}")
        if variables[name].when and not key:
            raise SpaceError(f"{template} has conditions, so it cannot be in a list, which needs its value")
        if variables[name].when and key in _REQUIRED:
            raise SpaceError(f"{template} has conditions, but {key} cannot be left out")


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
        if isinstance(value, Variable) and value.is_continuous:
            if field != _REAL_FIELD:
                raise SpaceError(f"${value.name} is continuous: give its range integers, or a step", field)
            continue
        for possible in value.values if isinstance(value, Variable) else (value,):
            if field in _LIMITS:
                check_int(possible, field, 1, _LIMITS[field], SpaceError)
            elif field in _REGISTRIES:
                _REGISTRIES[field].check(possible, field, SpaceError)
            elif isinstance(possible, (Mapping, list, tuple)):
                raise SpaceError(f"{possible!r} must be a single value", field)
