"""Architecture definitions to and from YAML. Errors name the file and the field."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import yaml

from fbnetv3.arch.compound_scaling import adapt_to_small_images, compound_scale, with_same_padding
from fbnetv3.arch.definition import MAX_RESOLUTION, ArchDef, ArchError, Row, Stage
from fbnetv3.utils.checks import check_int, check_keys, check_type, error_context
from fbnetv3.utils.files import expand_path, write_text
from fbnetv3.utils.yaml_files import BASE_KEY, pop_bases, read_mapping

_ARCH_FIELDS = tuple(f.name for f in fields(ArchDef))
# Columns of a written row: those of Table 2 in its order, then the rest
_TABLE_2_COLUMNS = ("block", "kernel", "expansion", "channels", "repeat", "stride", "se", "act")
_ROW_COLUMNS = (*_TABLE_2_COLUMNS, "dw_padding", "dw_group_width")


def load_arch(path: str | os.PathLike) -> ArchDef:
    """Read an architecture from YAML.

    A file holds `name`, `resolution`, `resize`, `source` and `stages` with their `rows`. Instead, it may name
    another file in `_BASE_`, inherit these fields from it, and transform it with `derive`: `scale` (the arguments of
    `compound_scale`), `small_images` (the base resolution) and `same_padding: true`, applied in this order.

    Raises:
        ArchError: names the file and the field, as in "my.yaml: stages[3].rows[1].kernel: 4 is even; ...".
    """
    return _load(str(expand_path(path)), ())


def _load(file: str, inherited_by: tuple[str, ...]) -> ArchDef:
    data = read_mapping(file, ArchError, _ARCH_FIELDS)
    with error_context(file=file):
        bases = pop_bases(data, file, ArchError, inherited_by)
        if not bases:
            return arch_from_dict(data)
        if len(bases) > 1:
            raise ArchError(
                f"lists {len(bases)} files, but an architecture can have only one base", BASE_KEY
            )
        check_keys(data, ArchError, (*_ARCH_FIELDS, BASE_KEY, "derive"), required=("name",))
        base = _load(bases[0], (*inherited_by, file))
        with error_context("derive"):
            base = _derive(base, data.pop("derive", {}))
        # The fields that the file sets itself
        if "stages" in data:
            data["stages"] = _parse_stages(data["stages"])
        return replace(base, **data)


def arch_from_dict(data: Mapping[str, Any]) -> ArchDef:
    """Build an architecture from plain dicts and lists, as read from YAML."""
    check_keys(data, ArchError, _ARCH_FIELDS, required=("name", "stages", "resolution"))
    return ArchDef(**{"resize": data["resolution"], **data, "stages": _parse_stages(data["stages"])})


def _derive(arch: ArchDef, steps: Any) -> ArchDef:
    """Apply the steps of `derive`."""
    check_type(steps, "", dict, "a mapping with the keys scale, small_images, same_padding", ArchError)
    check_keys(steps, ArchError, ("scale", "small_images", "same_padding"))
    if "scale" in steps:
        arguments = steps["scale"]
        with error_context("scale"):
            check_type(arguments, "", dict, "a mapping with the keys depth, width, resolution", ArchError)
            check_keys(arguments, ArchError, ("depth", "width", "resolution", "fixed", "multiple"))
            check_type(arguments.get("fixed", []), "fixed", list, "a list of names", ArchError)
            arch = compound_scale(arch, **arguments)
    if "small_images" in steps:
        check_int(steps["small_images"], "small_images", 1, MAX_RESOLUTION, ArchError)
        arch = adapt_to_small_images(arch, steps["small_images"])
    check_type(steps.get("same_padding", False), "same_padding", bool, "true or false", ArchError)
    return with_same_padding(arch) if steps.get("same_padding") else arch


def _parse_stages(stages: Any) -> tuple[Stage, ...]:
    check_type(stages, "stages", list, "a list", ArchError)
    parsed = []
    for s, stage in enumerate(stages):
        with error_context(f"stages[{s}]"):
            check_type(stage, "", dict, "a mapping with the key rows", ArchError)
            check_keys(stage, ArchError, ("rows",), required=("rows",))
            check_type(stage["rows"], "rows", list, "a list", ArchError)
            rows = []
            for r, row in enumerate(stage["rows"]):
                with error_context(f"rows[{r}]"):
                    check_type(
                        row, "", dict, "a mapping such as {block: mbconv, kernel: 3, ...}", ArchError
                    )
                    check_keys(row, ArchError, _ROW_COLUMNS, required=("block", "channels"))
                    rows.append(Row(**row))
            parsed.append(Stage(tuple(rows)))
    return tuple(parsed)


def dump_arch(arch: ArchDef) -> str:
    """Write an architecture as YAML, one aligned line per row, with the columns in Table 2's order.

    `arch_from_dict` reads it back as an equal architecture.
    """
    lines = [f"name: {_quote(arch.name)}"]
    if arch.source:
        lines.append(f"source: {_quote(arch.source)}")
    lines += [f"resolution: {arch.resolution}", f"resize: {arch.resize}", "stages:"]
    # Align the fields of all rows in columns; a column that no row uses has width 0
    cells = [[_row_cells(row) for row in stage.rows] for stage in arch.stages]
    widths = {column: max(len(row[column]) for stage in cells for row in stage) for column in _ROW_COLUMNS}
    for stage in cells:
        lines.append("- rows:")
        for row in stage:
            text = "".join(row[column].ljust(widths[column]) for column in _ROW_COLUMNS)
            lines.append(f"  - {{{text.rstrip().rstrip(',')}}}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Write any text on one line of YAML."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _row_cells(row: Row) -> dict[str, str]:
    """Write each field of a row as "name: value, ", or as empty text where it has its default."""
    always_shown = {"block", "channels", "repeat", "stride"} | (
        {"se", "act"} & row.spec_class.row_fields().keys()
    )
    cells = {}
    for f in fields(row):
        value = getattr(row, f.name)
        cells[f.name] = f"{f.name}: {value}, " if f.name in always_shown or value != f.default else ""
    return cells


def save_arch(arch: ArchDef, path: str | os.PathLike) -> None:
    """Write an architecture to a YAML file."""
    write_text(expand_path(path), dump_arch(arch))
