"""Templates of architectures and recipes in a search space: `$variable` where a candidate's value will stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from fbnetv3.arch import Row
from fbnetv3.arch.definition import MAX_CHANNELS, MAX_REPEAT, MAX_RESOLUTION
from fbnetv3.errors import FieldError
from fbnetv3.utils.yaml_files import check_keys

ARCHITECTURE, RECIPE = "architecture", "recipe"
PARTS = (ARCHITECTURE, RECIPE)
_TEMPLATE_KEYS = ("resolution", "resize", "stages")
_ROW_KEYS = tuple(f.name for f in fields(Row))


class SpaceError(FieldError):
    """A search space that makes no sense."""


def split_expansion(rows: list[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """A template's rows as those of an architecture, each with how many blocks it has of the template's `repeat`.

    A row whose expansion is a list, [of the first block, of the rest] (Table 2's slash), becomes two.

    Yields:
        The row, without `repeat` unless it is one as it stands, and "all", "first" or "rest".
    """
    for row in rows:
        expansion = row.get("expansion")
        if not isinstance(expansion, list):
            yield dict(row), "all"
            continue
        if len(expansion) != 2:
            raise SpaceError(
                f"{expansion!r} is neither one value nor two, of the first block and of the rest", "expansion"
            )
        first, rest = ({**row, "expansion": value} for value in expansion)
        yield first, "first"
        yield {**rest, "stride": 1}, "rest"


def rows_of(rows: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of an architecture from a template's that is filled in."""
    for row, which in split_expansion(rows):
        repeat = row.get("repeat", 1)
        count = {"all": repeat, "first": 1, "rest": repeat - 1}[which]
        if count:
            yield {**row, "repeat": count}


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A template with the variables' values in it."""
    if isinstance(template, Mapping):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    return values[template[1:]] if is_variable(template) else template


def is_variable(value: Any) -> bool:
    """Whether a template's value stands for a variable's."""
    return isinstance(value, str) and value.startswith("$")


def check_template(template: Any, part: str, variables: Mapping[str, Any]) -> None:
    """Refuse a template that is none, or names a variable that is not there or belongs to the other part.

    Args:
        template: what stands in a space, or None.
        part: architecture or recipe.
        variables: the space's, by name.

    Raises:
        SpaceError: names the place.
    """
    if template is None:
        return
    if not isinstance(template, Mapping) or (part == ARCHITECTURE and not isinstance(template.get("stages"), list)):
        raise SpaceError("is not a mapping" + (" with stages" if part == ARCHITECTURE else ""), part)

    def check(value: Any, where: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                check(inner, f"{where}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                check(inner, f"{where}[{index}]")
        elif is_variable(value):
            if value[1:] not in variables:
                raise SpaceError(f"{value} is not a variable of the space", where)
            if variables[value[1:]].part != part:
                raise SpaceError(f"{value} belongs to the {variables[value[1:]].part}", where)

    try:
        check(template, part)
    except RecursionError:
        raise SpaceError("holds itself, or is nested too deeply", part) from None
    if part == ARCHITECTURE:
        _check_architecture(template, variables)


def _check_architecture(template: Mapping[str, Any], variables: Mapping[str, Any]) -> None:
    """Refuse a template that has not the parts of an architecture, or counts blocks and pixels in what is no number.

    What its rows say is looked at when a candidate is made of it.
    """
    check_keys(template, SpaceError, _TEMPLATE_KEYS, required=("resolution", "stages"))
    _check_whole(template["resolution"], MAX_RESOLUTION, variables, f"{ARCHITECTURE}.resolution")
    _check_whole(template.get("resize", 1), 2 * MAX_RESOLUTION, variables, f"{ARCHITECTURE}.resize")
    if not template["stages"]:
        raise SpaceError("empty: a network needs at least one stage", f"{ARCHITECTURE}.stages")
    for s, stage in enumerate(template["stages"]):
        where = f"{ARCHITECTURE}.stages[{s}]"
        rows = stage.get("rows") if isinstance(stage, Mapping) and set(stage) == {"rows"} else None
        if not isinstance(rows, list) or not rows:
            raise SpaceError("is not a mapping with the key rows, a list", where)
        for r, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise SpaceError("is not a mapping such as {block: mbconv, kernel: 3, ...}", f"{where}.rows[{r}]")
            try:
                check_keys(row, SpaceError, _ROW_KEYS, required=("block", "channels"))
                list(split_expansion([row]))
            except SpaceError as error:
                raise error.within(f"{where}.rows[{r}]") from None
            for key, most in (("repeat", MAX_REPEAT), ("channels", MAX_CHANNELS), ("stride", 2)):
                _check_whole(row.get(key, 1), most, variables, f"{where}.rows[{r}].{key}")
            for key, value in row.items():
                if isinstance(value, Mapping) or (isinstance(value, list) and key != "expansion"):
                    raise SpaceError(f"{value!r} is not a single value", f"{where}.rows[{r}].{key}")


def _check_whole(value: Any, most: int, variables: Mapping[str, Any], where: str) -> None:
    known = variables.get(value[1:]) if is_variable(value) else None
    for each in known.values if known else () if is_variable(value) else (value,):
        if type(each) is not int or not 1 <= each <= most:
            raise SpaceError(f"{each!r} is not a whole number from 1 to {most:,}", where)
