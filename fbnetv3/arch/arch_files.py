"""Architecture definitions to and from YAML. Every error names the file and the field."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.arch.compound_scaling import compound_scale, same_padding, small_images
from fbnetv3.arch.definition import MAX_RESOLUTION, ArchDef, ArchError, Row, Stage
from fbnetv3.errors import UsageError
from fbnetv3.utils.yaml_files import check_keys, read_mapping

BASE_KEY = "_BASE_"
DERIVE_KEY = "derive"
_MOST_BASES = 50
_ARCH_FIELDS = tuple(f.name for f in fields(ArchDef))
_ROW_FIELDS = tuple(f.name for f in fields(Row))
_ROW_COLUMNS = ("block", "kernel", "expansion", "channels", "repeat", "stride", "se", "act", *_ROW_FIELDS[-2:])


def load_arch(path: str | os.PathLike) -> ArchDef:
    """Read an architecture from YAML.

    A file holds `name`, `resolution`, `resize`, `source` and `stages`, each with its `rows`; or it names
    another file as `_BASE_`, whose fields it inherits, and may `derive` from it: `scale` (the arguments of
    `compound_scale`), `small_images` (the base resolution) and `same_padding: true`, applied in this order.

    Raises:
        ArchError: the file is missing, not YAML, or describes no network. The text names file and field.
    """
    return _load(str(path), ())


def _load(path: str, above: tuple[str, ...]) -> ArchDef:
    if "\0" in path:
        raise ArchError(f"{path!r} is not a file name", BASE_KEY, above[-1] if above else "")
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise ArchError(f"the files form a circle: {' -> '.join((*above, path))}", BASE_KEY, path)
    if len(above) > _MOST_BASES:
        raise ArchError(f"more than {_MOST_BASES} files below each other", BASE_KEY, above[0])
    data = read_mapping(path, ArchError, _ARCH_FIELDS)
    try:
        base = data.pop(BASE_KEY, None)
        if base is None:
            return arch_from_dict(data)
        if not isinstance(base, str):
            raise ArchError(f"{base!r} is not a file name", BASE_KEY)
        inherited = _load(os.path.join(os.path.dirname(path), base), (*above, path))
        return _derived(inherited, data)
    except ArchError as error:
        raise error.in_file(path) from None


def arch_from_dict(data: Mapping[str, Any]) -> ArchDef:
    """An architecture from plain dicts and lists, as they stand in a YAML file.

    Raises:
        ArchError: names the field at fault, as in "stages[3].rows[1].kernel: 4 is even".
    """
    values = dict(data)
    _check_keys(values, _ARCH_FIELDS, required=("name", "stages", "resolution"))
    values["stages"] = _stages(values["stages"])
    values.setdefault("resize", values["resolution"])
    return ArchDef(**values)


def _derived(base: ArchDef, data: dict[str, Any]) -> ArchDef:
    steps = data.pop(DERIVE_KEY, {})
    _check_keys(data, _ARCH_FIELDS, required=("name",), also=(BASE_KEY, DERIVE_KEY))
    if "stages" in data:
        data["stages"] = _stages(data["stages"])
    if not isinstance(steps, dict):
        raise ArchError("is not a mapping with the keys scale, small_images, same_padding", DERIVE_KEY)
    try:
        _check_keys(steps, ("scale", "small_images", "same_padding"))
        if "scale" in steps:
            base = _scaled(base, steps["scale"])
        if "small_images" in steps:
            pixels = steps["small_images"]
            if isinstance(pixels, bool) or not isinstance(pixels, int) or not 1 <= pixels <= MAX_RESOLUTION:
                raise ArchError(f"{pixels!r} is not a number of pixels", "small_images")
            base = small_images(base, pixels)
        if "same_padding" in steps:
            if steps["same_padding"] is not True:
                raise ArchError("can only be true", "same_padding")
            base = same_padding(base)
    except ArchError as error:
        raise error.within(DERIVE_KEY) from None
    except UsageError as error:
        raise ArchError(str(error), DERIVE_KEY) from None
    return replace(base, **data)


def _scaled(base: ArchDef, arguments: object) -> ArchDef:
    if not isinstance(arguments, dict):
        raise ArchError("is not a mapping with the keys depth, width, resolution", "scale")
    try:
        _check_keys(arguments, ("depth", "width", "resolution", "fixed", "multiple"))
        fixed = arguments.get("fixed", ["stem", "last"])
        if not isinstance(fixed, list) or not all(isinstance(part, str) for part in fixed):
            raise ArchError(f"{fixed!r} is not a list of names", "fixed")
        multiple = arguments.get("multiple", 8)
        if isinstance(multiple, bool) or not isinstance(multiple, int) or not 1 <= multiple <= MAX_RESOLUTION:
            raise ArchError(f"{multiple!r} is not a number of pixels", "multiple")
        return compound_scale(base, **{**arguments, "fixed": tuple(fixed)})
    except ArchError as error:
        raise error.within("scale") from None
    except UsageError as error:
        raise ArchError(str(error), "scale") from None


def _stages(value: object) -> tuple[Stage, ...]:
    stages = []
    for s, stage in enumerate(_list(value, "stages")):
        where = f"stages[{s}]"
        if not isinstance(stage, dict):
            raise ArchError("is not a mapping with the key rows", where)
        try:
            _check_keys(stage, ("rows",), required=("rows",))
            rows = []
            for r, row in enumerate(_list(stage["rows"], "rows")):
                try:
                    if not isinstance(row, dict):
                        raise ArchError("is not a mapping such as {block: mbconv, kernel: 3, ...}")
                    _check_keys(row, _ROW_FIELDS, required=("block", "channels"))
                    rows.append(Row(**row))
                except ArchError as error:
                    raise error.within(f"rows[{r}]") from None
            stages.append(Stage(tuple(rows)))
        except ArchError as error:
            raise error.within(where) from None
    return tuple(stages)


def _list(value: object, field: str) -> list:
    if not isinstance(value, list):
        raise ArchError(f"{value!r} is not a list", field)
    return value


def _check_keys(
    data: Mapping, known: tuple[str, ...], required: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> None:
    check_keys(data, ArchError, known, required, also)


def dump_arch(defn: ArchDef) -> str:
    """The definition as YAML, one aligned line a row, in the column order of Table 2. Reads back equal."""
    lines = [f"name: {_quoted(defn.name)}"]
    if defn.source:
        lines.append(f"source: {_quoted(defn.source)}")
    lines += [f"resolution: {defn.resolution}", f"resize: {defn.resize}", "stages:"]
    cells = [[_cells(row) for row in stage.rows] for stage in defn.stages]
    widths = {
        column: max(len(cell[column]) for stage in cells for cell in stage) for column in _ROW_COLUMNS
    }  # a column that no row uses has width 0
    for stage in cells:
        lines.append("- rows:")
        for cell in stage:
            text = "".join(cell[column].ljust(width) for column, width in widths.items() if width)
            lines.append(f"  - {{{text.rstrip().rstrip(',')}}}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text on one line of YAML, whatever signs it has."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _cells(row: Row) -> dict[str, str]:
    shown = {"block", "channels", "repeat", "stride", "act", "se"}
    defaults = {f.name: f.default for f in fields(Row)}
    spec_fields = row._spec_class().REQUIRED | row._spec_class().OPTIONAL
    shown -= {"se", "act"} - spec_fields
    return {
        column: f"{column}: {getattr(row, column)}, "
        if column in shown or getattr(row, column) != defaults[column]
        else ""
        for column in _ROW_COLUMNS
    }


def save_arch(defn: ArchDef, path: str | os.PathLike) -> None:
    """Write the definition to a YAML file."""
    Path(path).write_text(dump_arch(defn))
