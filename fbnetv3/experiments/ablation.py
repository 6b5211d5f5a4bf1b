"""Ablations, as in Tables 6 and 8 and Fig. 7: train a grid of networks for several seeds; draw a table and a figure."""

from __future__ import annotations

import logging
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from tabulate import tabulate

from fbnetv3.config import load_config
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import FieldError
from fbnetv3.training.builders import count_macs, resolve_arch
from fbnetv3.training.classifier_training import train_classifier
from fbnetv3.training.run_state.metrics import selection_accuracy
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.checks import check_choice, check_int, check_keys, check_type, error_context
from fbnetv3.utils.files import expand_path, make_folder, write_json, write_text
from fbnetv3.utils.nested_keys import flatten, parse_pairs
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes
from fbnetv3.utils.yaml_files import read_mapping, resolve_in_folder

logger = logging.getLogger(__name__)

_REQUIRED_KEYS = ("title", "config", "rows", "columns", "output")
_KEYS = (*_REQUIRED_KEYS, "overrides", "seeds", "x")
# Config keys whose values may be paths relative to the ablation's file
_PATH_KEYS = ("RECIPE", "MODEL.ARCH", "DISTILL.ARCH", "DISTILL.WEIGHTS", "MODEL.WEIGHTS", "DATA.ROOT")

Overrides = Mapping[str, Any]
"""Config keys with dots and their values."""


@dataclass(frozen=True)
class Ablation:
    """A grid of training runs: each cell, a row and a column, is trained once per seed.

    `teacher_of_column` maps columns that train with distillation to the column that trains their teacher, in the same
    row and with the same seed. In a figure over MACs, each column has a line; `line_of_row` maps rows that belong on a
    different one to its name.
    """

    title: str
    config: Path  # of all cells
    overrides: Overrides  # for all cells
    rows: Mapping[str, Overrides]
    columns: Mapping[str, Overrides]
    teacher_of_column: Mapping[str, str]
    line_of_row: Mapping[str, str]
    seeds: tuple[int, ...]
    x_axis: str  # "macs" for a figure over MACs, "" for cells side by side
    output: Path


@dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    row: str
    column: str
    seed: int


@dataclass(frozen=True)
class CellResult(Cell):
    """Result of one training run."""

    top1: float  # percent, of the averaged weights if there are any; with several labels per image, mAP
    macs: int


def load_ablation(path: str | os.PathLike) -> Ablation:
    """Read an ablation from a YAML file; errors name the file and the field.

    `config` and the paths in config keys are relative to the file, `output` to the current folder.
    """
    data = read_mapping(path, FieldError, _KEYS)
    with error_context(file=str(path)):
        check_keys(data, FieldError, _KEYS, required=_REQUIRED_KEYS)
        return _parse_ablation(data, expand_path(path).resolve().parent)


def _parse_ablation(data: Mapping[str, Any], folder: Path) -> Ablation:
    for key in ("title", "config", "output"):
        check_type(data[key], key, str, "text")
    check_choice(data.get("x", ""), "x", ("", "macs"))
    seeds = data.get("seeds", [0])
    check_type(seeds, "seeds", list, "a list of integers")
    for i, seed in enumerate(seeds):
        check_int(seed, f"seeds[{i}]", 0)
    if not seeds:
        raise FieldError("is empty; list at least one seed", "seeds")
    if len(set(seeds)) < len(seeds):
        raise FieldError(f"{seeds!r} repeats a seed", "seeds")
    rows = _parse_overrides_by_name(data["rows"], "rows", folder)
    columns = _parse_overrides_by_name(data["columns"], "columns", folder)
    return Ablation(
        title=data["title"],
        config=folder / expand_path(data["config"]),
        overrides=_parse_overrides(data.get("overrides"), "overrides", folder),
        # LINE and TEACHER are taken out: the remaining keys are config keys
        line_of_row={name: str(row.pop("LINE")) for name, row in rows.items() if "LINE" in row},
        teacher_of_column=_pop_teachers(rows, columns),
        rows=rows,
        columns=columns,
        seeds=tuple(seeds),
        x_axis=data.get("x", ""),
        output=expand_path(data["output"]),
    )


def _parse_overrides_by_name(value: Any, field: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Parse the rows or columns."""
    check_type(value or None, field, Mapping, "a mapping of names to config keys")
    names = [str(name) for name in value]
    if len(set(map(_folder_name, names))) < len(names):
        raise FieldError(
            f"{names} must differ in letters or digits, because run folders are named after them", field
        )
    return {str(name): _parse_overrides(keys, f"{field}.{name}", folder) for name, keys in value.items()}


def _parse_overrides(overrides: Any, field: str, folder: Path) -> dict[str, Any]:
    """Parse config keys and values; paths relative to `folder` become absolute."""
    overrides = {} if overrides is None else overrides
    check_type(overrides, field, Mapping, "a mapping of config keys such as SOLVER.LR: 0.1")
    return {
        key: resolve_in_folder(value, folder) if key in _PATH_KEYS and isinstance(value, str) else value
        for key, value in flatten(overrides).items()
    }


def _pop_teachers(
    rows: Mapping[str, dict[str, Any]], columns: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """Remove the key TEACHER from the columns, and return its values by column."""
    for name, row in rows.items():
        if "TEACHER" in row:
            raise FieldError(
                "only columns can have a teacher; move this key to a column", f"rows.{name}.TEACHER"
            )
    teachers = {name: column.pop("TEACHER") for name, column in columns.items() if "TEACHER" in column}
    # One level only, so that all teachers can be trained first
    candidates = [name for name in columns if name not in teachers]
    for name, teacher in teachers.items():
        check_choice(teacher, f"columns.{name}.TEACHER", candidates)
    return teachers


def grid_cells(ablation: Ablation) -> list[Cell]:
    """List the cells in training order: seed by seed, teachers before their students."""
    # False sorts before True
    columns = sorted(ablation.columns, key=lambda name: name in ablation.teacher_of_column)
    return [
        Cell(row, column, seed) for seed in ablation.seeds for row in ablation.rows for column in columns
    ]


def cell_folder(ablation: Ablation, cell: Cell) -> Path:
    """Return the output folder of a cell's run."""
    name = f"{_folder_name(cell.row)}--{_folder_name(cell.column)}--seed{cell.seed}"
    return ablation.output / name


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def cell_config(ablation: Ablation, cell: Cell, overrides: Sequence[str] = ()) -> CfgNode:
    """Build the training config of a cell. Keys that distinguish cells take precedence over the `overrides`."""
    # Keys of this cell alone: seed, folder, and the teacher trained in another column
    cell_keys: dict[str, Any] = {"SEED": cell.seed, "OUTPUT_DIR": cell_folder(ablation, cell)}
    if cell.column in ablation.teacher_of_column:
        teacher_cell = Cell(cell.row, ablation.teacher_of_column[cell.column], cell.seed)
        cell_keys["DISTILL.ARCH"] = cell_config(ablation, teacher_cell, overrides).MODEL.ARCH
        cell_keys["DISTILL.WEIGHTS"] = RunFolder(cell_folder(ablation, teacher_cell)).weights
    # Later overrides take precedence, and in each of them, explicit keys over those of its recipe
    pairs = parse_pairs(overrides)
    merged: dict[str, Any] = {}
    for source in (
        ablation.overrides,
        pairs,
        ablation.rows[cell.row],
        ablation.columns[cell.column],
        cell_keys,
    ):
        if source.get("RECIPE"):
            merged |= flatten(load_recipe(expand_path(source["RECIPE"])).to_config())
        merged |= {key: value for key, value in source.items() if key != "RECIPE"}
    return load_config(ablation.config, [str(text) for pair in merged.items() for text in pair])


def run_ablation(ablation: Ablation, overrides: Sequence[str] = ()) -> Iterator[CellResult]:
    """Train all cells that have not been trained yet, and yield the results one by one.

    A later call resumes an interrupted ablation. All configs are checked before the first run starts. The KEY VALUE
    pairs in `overrides` apply to every cell, except to keys that its row or column sets.
    """
    cells = grid_cells(ablation)
    configs = [cell_config(ablation, cell, overrides) for cell in cells]
    for number, (cell, cfg) in enumerate(zip(cells, configs, strict=True), 1):
        logger.info("%d/%d: %s, %s, seed %d", number, len(cells), cell.row, cell.column, cell.seed)
        run = train_classifier(cfg, resume=True)
        accuracy = selection_accuracy(run.metrics)
        macs = count_macs(cfg, resolve_arch(cfg, cfg.MODEL.ARCH), run.num_classes)
        yield CellResult(cell.row, cell.column, cell.seed, accuracy, macs)


Accuracies = dict[tuple[str, str], list[float]]
"""Top-1 of each seed in percent, by (row, column)."""


def _group_by_cell(results: Sequence[CellResult]) -> Accuracies:
    accuracies: Accuracies = {}
    for result in results:
        accuracies.setdefault((result.row, result.column), []).append(result.top1)
    return accuracies


def _standard_deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def results_table(ablation: Ablation, results: Sequence[CellResult]) -> str:
    """Format the results as a Markdown table."""
    # Columns of the table; cells without a result stay empty
    rows = list(ablation.rows)
    table: dict[str, list[str]] = {"": rows}
    if ablation.x_axis:
        macs = {result.row: f"{result.macs / 1e6:,.1f} M" for result in results}
        table["MACs"] = [macs.get(row, "") for row in rows]
    table |= {column: [""] * len(rows) for column in ablation.columns}
    for (row, column), values in _group_by_cell(results).items():
        deviation = f" ± {_standard_deviation(values):.2f}" if len(values) > 1 else ""
        table[column][rows.index(row)] = f"{statistics.fmean(values):.2f}%{deviation}"
    num_seeds = len(ablation.seeds)
    seeds = f"mean and standard deviation over {num_seeds} seeds" if num_seeds > 1 else "one seed"
    text = tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)
    return f"{ablation.title}: top-1, {seeds}\n\n{text}"


def save_results(ablation: Ablation, results: Sequence[CellResult]) -> list[Path]:
    """Write `results.json`, `table.md` and `figure.png` into the output folder, and return their paths."""
    make_folder(ablation.output, "change `output`")
    files = [ablation.output / name for name in ("results.json", "table.md", "figure.png")]
    results_file, table_file, figure_file = files
    write_json(results_file, [asdict(result) for result in results], indent=1)
    write_text(table_file, results_table(ablation, results) + "\n")
    # The figure, with error bars of one standard deviation
    figure = new_figure(6.4, 4, dpi=110)
    axes = figure.subplots()
    accuracies = _group_by_cell(results)
    if ablation.x_axis:
        _draw_over_macs(axes, ablation, accuracies, {result.row: result.macs / 1e6 for result in results})
    else:
        _draw_side_by_side(axes, ablation, accuracies)
    style_axes(axes, ylabel="top-1 (%)", title=ablation.title)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False)
    save_figure(figure, figure_file)
    return files


def _draw_over_macs(axes: Any, ablation: Ablation, accuracies: Accuracies, macs: dict[str, float]) -> None:
    """Draw one line per column, and one per line named by rows; `macs` are in millions."""
    lines: dict[str, list[tuple[float, str, list[float]]]] = {}
    for (row, column), values in accuracies.items():
        lines.setdefault(ablation.line_of_row.get(row, column), []).append((macs[row], row, values))
    # Draw each line from left to right, with the rows' names at its points
    for line, points in lines.items():
        points.sort(key=lambda point: point[0])
        _draw_cells(axes, [(x, values) for x, _, values in points], line, "o-")
        for x, row, values in points:
            position = (x, statistics.fmean(values))
            axes.annotate(row, position, textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.set_xlabel("MACs (millions)")


def _draw_side_by_side(axes: Any, ablation: Ablation, accuracies: Accuracies) -> None:
    """Draw the columns next to each other, row by row."""
    num_columns = len(ablation.columns)
    for index, column in enumerate(ablation.columns):
        # Spread the columns evenly around the row's tick
        offset = (index - (num_columns - 1) / 2) * 0.6 / num_columns
        cells = [(i + offset, (row, column)) for i, row in enumerate(ablation.rows)]
        _draw_cells(axes, [(x, accuracies[cell]) for x, cell in cells if cell in accuracies], column, "o")
    axes.set_xticks(range(len(ablation.rows)), list(ablation.rows))
    axes.set_xlim(-0.6, len(ablation.rows) - 0.4)


def _draw_cells(axes: Any, points: Sequence[tuple[float, list[float]]], label: str, style: str) -> None:
    x = [position for position, _ in points]
    means = [statistics.fmean(values) for _, values in points]
    deviations = [_standard_deviation(values) for _, values in points]
    axes.errorbar(x, means, deviations, fmt=style, capsize=3, label=label)
