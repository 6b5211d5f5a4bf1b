"""Ablations: train a grid of rows, columns and seeds, as in Tables 6 and 8 and Fig. 7."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.arch import ArchDef, compute_cost
from fbnetv3.config import load_config
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import FieldError
from fbnetv3.modeling.torchvision_models import count_torchvision_macs
from fbnetv3.training.builders import build_arch, preprocessing_from_config
from fbnetv3.training.classifier_training import train_classifier
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.checks import check_choice, check_int, check_keys, check_type, error_context
from fbnetv3.utils.nested_keys import flatten, parse_pairs
from fbnetv3.utils.yaml_files import read_mapping, resolve_in_folder

logger = logging.getLogger(__name__)

_REQUIRED_KEYS = ("title", "config", "rows", "columns", "output")
_KEYS = (*_REQUIRED_KEYS, "overrides", "seeds", "x")
# Row and column keys that are not config keys
_TEACHER = "TEACHER"
_LINE = "LINE"
# Config keys whose values may be paths relative to the ablation's file
_PATH_KEYS = ("RECIPE", "MODEL.ARCH", "DISTILL.ARCH", "DISTILL.WEIGHTS", "MODEL.WEIGHTS", "DATA.ROOT")

Overrides = Mapping[str, Any]
"""Config keys with dots and their values."""


class AblationError(FieldError):
    """An invalid ablation file."""


@dataclass(frozen=True)
class Ablation:
    """A grid of training runs.

    Attributes:
        title: title of the table and the figure.
        config: the training config that all cells share.
        overrides: overrides for all cells.
        rows: overrides of each row, by name.
        columns: overrides of each column, by name.
        teachers: columns trained with distillation, and the column that trains their teacher: a cell's teacher is the
            network of the same row and seed in that column.
        lines: for rows that are not on their column's line in a figure over MACs, the name of their line.
        seeds: random seeds; each cell is trained once per seed.
        x: "macs" for a figure of accuracy over MACs, "" for one with the cells side by side.
        output: output folder of all runs.
    """

    title: str
    config: Path
    overrides: Overrides
    rows: Mapping[str, Overrides]
    columns: Mapping[str, Overrides]
    teachers: Mapping[str, str]
    lines: Mapping[str, str]
    seeds: tuple[int, ...]
    x: str
    output: Path


@dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    row: str
    column: str
    seed: int


@dataclass(frozen=True)
class CellResult:
    """Result of one training run.

    Attributes:
        top1: top-1 accuracy in percent after the last epoch, of the averaged weights if EMA is enabled.
        macs: number of multiply-adds of the network.
    """

    row: str
    column: str
    seed: int
    top1: float
    macs: int


def load_ablation(path: str | os.PathLike) -> Ablation:
    """Read an ablation from a YAML file.

    Raises:
        AblationError: names the file and the field.
    """
    data = read_mapping(path, AblationError, _KEYS)
    with error_context(file=str(path)):
        check_keys(data, AblationError, _KEYS, required=_REQUIRED_KEYS)
        return _parse_ablation(data, Path(path).resolve().parent)


def _parse_ablation(data: Mapping[str, Any], folder: Path) -> Ablation:
    for key in ("title", "config", "output"):
        check_type(data[key], key, str, "text", AblationError)
    check_choice(data.get("x", ""), "x", ("", "macs"), AblationError)
    rows = _parse_layers(data["rows"], "rows", folder)
    columns = _parse_layers(data["columns"], "columns", folder)
    # LINE and TEACHER are taken out: the remaining keys are config keys
    lines = {name: str(row.pop(_LINE)) for name, row in rows.items() if _LINE in row}
    return Ablation(
        title=data["title"],
        config=folder / data["config"],
        overrides=_parse_overrides(data.get("overrides"), "overrides", folder),
        rows=rows,
        columns=columns,
        teachers=_pop_teachers(rows, columns),
        lines=lines,
        seeds=_parse_seeds(data.get("seeds", [0])),
        x=data.get("x", ""),
        output=Path(data["output"]).expanduser(),
    )


def _parse_seeds(seeds: Any) -> tuple[int, ...]:
    check_type(seeds, "seeds", list, "a list of integers", AblationError)
    for i, seed in enumerate(seeds):
        check_int(seed, f"seeds[{i}]", 0, error=AblationError)
    if not seeds or len(set(seeds)) < len(seeds):
        raise AblationError(f"{seeds!r} is empty or repeats a seed", "seeds")
    return tuple(seeds)


def _parse_layers(layers: Any, field: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Parse rows or columns: overrides by name."""
    if not isinstance(layers, Mapping) or not layers:
        raise AblationError("must be a mapping of names to config keys", field)
    return {str(name): _parse_overrides(layer, f"{field}.{name}", folder) for name, layer in layers.items()}


def _parse_overrides(overrides: Any, field: str, folder: Path) -> dict[str, Any]:
    """Parse config keys and values; paths relative to `folder` become absolute."""
    overrides = {} if overrides is None else overrides
    check_type(overrides, field, Mapping, "a mapping of config keys such as SOLVER.LR: 0.1", AblationError)
    parsed = {}
    for key, value in flatten(overrides).items():
        if key in _PATH_KEYS and isinstance(value, str):
            value = resolve_in_folder(value, folder)
        parsed[key] = value
    return parsed


def _pop_teachers(rows: Mapping[str, dict[str, Any]], columns: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Remove the key TEACHER from the columns, and return its values by column."""
    for name, row in rows.items():
        if _TEACHER in row:
            raise AblationError("only columns can have a teacher; move this key to a column", f"rows.{name}.{_TEACHER}")
    teachers = {name: column.pop(_TEACHER) for name, column in columns.items() if _TEACHER in column}
    for name, teacher in teachers.items():
        field = f"columns.{name}.{_TEACHER}"
        check_choice(teacher, field, columns, AblationError)
        # One level only, so that all teachers can be trained first
        if teacher in teachers:
            raise AblationError(f"{teacher!r} itself has a teacher; name a column without TEACHER", field)
    return teachers


def grid_cells(ablation: Ablation) -> list[Cell]:
    """List the cells in training order: seed by seed, teachers before their students."""
    # False sorts before True: columns without a teacher come first
    columns = sorted(ablation.columns, key=lambda name: name in ablation.teachers)
    return [Cell(row, column, seed) for seed in ablation.seeds for row in ablation.rows for column in columns]


def cell_folder(ablation: Ablation, cell: Cell) -> Path:
    """Return the output folder of a cell's run."""

    def file_name(text: str) -> str:
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)

    return ablation.output / f"{file_name(cell.row)}--{file_name(cell.column)}--seed{cell.seed}"


def cell_config(ablation: Ablation, cell: Cell, overrides: Sequence[str] = ()) -> CfgNode:
    """Build the training config of a cell.

    Args:
        ablation: grid of the cell.
        cell: cell of the grid.
        overrides: KEY VALUE pairs for every cell. The keys that distinguish the cells take precedence.
    """
    # Keys of this cell alone: seed, folder, and the teacher trained in another column
    cell_keys: dict[str, Any] = {"SEED": cell.seed, "OUTPUT_DIR": cell_folder(ablation, cell)}
    if cell.column in ablation.teachers:
        teacher_cell = Cell(cell.row, ablation.teachers[cell.column], cell.seed)
        cell_keys["DISTILL.ARCH"] = cell_config(ablation, teacher_cell, overrides).MODEL.ARCH
        cell_keys["DISTILL.WEIGHTS"] = RunFolder(cell_folder(ablation, teacher_cell)).weights
    # Later layers take precedence
    layers = (
        ablation.overrides,
        parse_pairs(overrides),
        ablation.rows[cell.row],
        ablation.columns[cell.column],
        cell_keys,
    )
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(_expand_recipe(layer))
    return load_config(ablation.config, [str(text) for pair in merged.items() for text in pair])


def _expand_recipe(overrides: Overrides) -> dict[str, Any]:
    """Replace the key RECIPE with the values in its file; the other keys take precedence over them."""
    expanded = dict(overrides)
    recipe_file = expanded.pop("RECIPE", "")
    if not recipe_file:
        return expanded
    recipe = load_recipe(Path(recipe_file).expanduser())
    return {**flatten(recipe.to_config()), **expanded}


def run_ablation(ablation: Ablation, overrides: Sequence[str] = ()) -> Iterator[CellResult]:
    """Train all cells that have not been trained yet, and yield the results one by one.

    A later call resumes an interrupted ablation. All configs are checked before the first run starts.

    Args:
        ablation: grid to train.
        overrides: KEY VALUE pairs for every cell.
    """
    cells = grid_cells(ablation)
    configs = [cell_config(ablation, cell, overrides) for cell in cells]
    for number, (cell, cfg) in enumerate(zip(cells, configs, strict=True), 1):
        logger.info("%d/%d: %s, %s, seed %d", number, len(cells), cell.row, cell.column, cell.seed)
        run = train_classifier(cfg, resume=True)
        # Prefer the averaged weights' accuracy if EMA is enabled
        top1 = run.metrics.get("ema_top1", run.metrics["top1"])
        yield CellResult(cell.row, cell.column, cell.seed, top1, _count_macs(cfg, run.num_classes))


def _count_macs(cfg: CfgNode, num_classes: int) -> int:
    """Count the MACs of a config's network at its resolution."""
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    resolution = preprocessing_from_config(cfg, arch).resolution
    if isinstance(arch, ArchDef):
        return compute_cost(arch, resolution, num_classes=num_classes, in_chans=cfg.MODEL.IN_CHANS).macs
    return count_torchvision_macs(arch, resolution, num_classes)
