"""Ablations: a grid of trainings, rows by columns by seeds, as in the paper's Tables 6 and 8 and its Fig. 7."""

from __future__ import annotations

import io
import json
import logging
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.arch import ArchDef, cost_of
from fbnetv3.config import load_config
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import FieldError, OutputError, UsageError
from fbnetv3.modeling.torchvision_models import count_macs
from fbnetv3.training.builders import build_arch, preprocessing_of
from fbnetv3.training.classifier_training import run_training
from fbnetv3.training.run_state.run_folder import RunFiles
from fbnetv3.utils.files import atomic_write
from fbnetv3.utils.yaml_files import check_keys, read_mapping

logger = logging.getLogger(__name__)

_KEYS = ("title", "config", "overrides", "rows", "columns", "seeds", "x", "output")
_TEACHER, _LINE = "TEACHER", "LINE"
# Keys whose values may be files beside the ablation's own.
_FILES = ("RECIPE", "MODEL.ARCH", "DISTILL.ARCH", "DISTILL.WEIGHTS", "MODEL.WEIGHTS", "DATA.ROOT")


class AblationError(FieldError):
    """An ablation that makes no sense."""


@dataclass(frozen=True)
class Ablation:
    """A grid of trainings.

    Attributes:
        title: what the table shows.
        config: the training config that all share.
        overrides: config keys and values for all of them.
        rows, columns: name of each, and its config keys and values. The key TEACHER names a column: its network of
            the same row and seed, trained to the end, is the teacher. The key LINE of a row names the line that it
            belongs to in a figure against MACs; default: that of its column.
        seeds: each cell is trained once with each.
        x: "macs" where the figure shows accuracy against MACs; "" where it shows the cells side by side.
        output: folder of all the runs.
    """

    title: str
    config: Path
    overrides: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    x: str
    output: Path


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    row: str
    column: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What a training of the grid came to: top-1 in per cent after the last epoch (of the average, where there is
    one), and the network's MACs."""

    row: str
    column: str
    seed: int
    top1: float
    macs: int


def load_ablation(path: str | os.PathLike) -> Ablation:
    """Read an ablation from YAML.

    Raises:
        AblationError: the file is missing, not YAML, or makes no sense. The text names file and field.
    """
    data = read_mapping(path, AblationError, _KEYS)
    try:
        check_keys(data, AblationError, _KEYS, required=("title", "config", "rows", "columns", "output"))
        folder = Path(path).resolve().parent
        layers = {name: _layers(data[name], name, folder) for name in ("rows", "columns")}
        seeds = data.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
            raise AblationError(f"{seeds!r} is not a list of whole numbers", "seeds")
        if len(set(seeds)) < len(seeds):
            raise AblationError(f"{seeds!r} has a seed twice", "seeds")
        if data.get("x", "") not in ("", "macs"):
            raise AblationError(f"{data['x']!r} is not macs", "x")
        for key in ("title", "config", "output"):
            if not isinstance(data[key], str) or not data[key]:
                raise AblationError(f"{data[key]!r} is not text", key)
        overrides = _layer(data.get("overrides") or {}, "overrides", folder)
        ablation = Ablation(
            data["title"],
            folder / data["config"],
            overrides,
            **layers,
            seeds=tuple(seeds),
            x=data.get("x", ""),
            output=Path(data["output"]).expanduser(),
        )
        _check_teachers(ablation)
        return ablation
    except AblationError as error:
        raise error.in_file(str(path)) from None


def _layers(value: Any, field: str, folder: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise AblationError("is not a mapping from names to config keys", field)
    return {str(name): _layer(layer or {}, f"{field}.{name}", folder) for name, layer in value.items()}


def _layer(value: Any, field: str, folder: Path) -> dict[str, Any]:
    """Config keys and values; files that lie beside the ablation's are found there."""
    if not isinstance(value, dict):
        raise AblationError("is not a mapping of config keys such as SOLVER.LR: 0.1", field)
    found = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            raise AblationError("is a mapping: write keys such as SOLVER.LR", f"{field}.{key}")
        beside = key in _FILES and isinstance(entry, str) and os.path.isfile(folder / entry)
        found[key] = str(folder / entry) if beside else entry
    return found


def _check_teachers(ablation: Ablation) -> None:
    for layers, where in ((ablation.rows, "rows"), (ablation.columns, "columns")):
        for name, layer in layers.items():
            teacher = layer.get(_TEACHER)
            if teacher is None:
                continue
            field = f"{where}.{name}.{_TEACHER}"
            if where == "rows" or teacher not in ablation.columns:
                raise AblationError(f"{teacher!r} is not one of the columns {', '.join(ablation.columns)}", field)
            if _TEACHER in ablation.columns[teacher]:
                raise AblationError(f"{teacher!r} has a teacher itself", field)


def cells(ablation: Ablation) -> list[Cell]:
    """The grid, seed by seed, teachers before those that they teach."""
    columns = sorted(ablation.columns, key=lambda name: _TEACHER in ablation.columns[name])
    return [Cell(row, column, seed) for seed in ablation.seeds for row in ablation.rows for column in columns]


def cell_folder(ablation: Ablation, cell: Cell) -> Path:
    """Where a cell's run lies."""

    def plain(text: str) -> str:
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)

    return ablation.output / f"{plain(cell.row)}--{plain(cell.column)}--seed{cell.seed}"


def cell_config(ablation: Ablation, cell: Cell, overrides: Sequence[str] = ()) -> CfgNode:
    """The training config of a cell.

    Args:
        ablation: the grid.
        cell: one of it.
        overrides: KEY VALUE pairs for every cell, below what tells cells apart.

    Raises:
        UserError: as `load_config`.
    """
    if len(overrides) % 2:
        raise UsageError(f"{overrides[-1]}: has no value; overrides come as KEY VALUE pairs")
    row, column = dict(ablation.rows[cell.row]), dict(ablation.columns[cell.column])
    row.pop(_LINE, None)
    folder = cell_folder(ablation, cell)
    last: dict[str, Any] = {"SEED": cell.seed, "OUTPUT_DIR": folder}
    if teacher := column.pop(_TEACHER, None):
        taught_by = Cell(cell.row, teacher, cell.seed)
        other = cell_config(ablation, taught_by, overrides)
        last |= {"DISTILL.ARCH": other.MODEL.ARCH, "DISTILL.WEIGHTS": RunFiles(Path(other.OUTPUT_DIR)).weights}
    layers = (ablation.overrides, dict(zip(overrides[::2], overrides[1::2], strict=True)), row, column, last)
    keys = {key: str(value) for layer in layers for key, value in _without_recipe(layer).items()}
    return load_config(ablation.config, [part for pair in keys.items() for part in pair])


def _without_recipe(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's keys with those of its recipe file below them, so that a layer below it has no say in them."""
    keys = dict(layer)
    if not (recipe := keys.pop("RECIPE", "")):
        return keys
    sections = load_recipe(Path(recipe).expanduser()).to_config()
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()} | keys


def run_ablation(ablation: Ablation, overrides: Sequence[str] = ()) -> Iterator[Result]:
    """Train what is not trained yet, and give each result as it is there.

    Interrupted or killed, the next call goes on where it stopped.

    Args:
        ablation: the grid.
        overrides: KEY VALUE pairs for every cell.

    Raises:
        UserError: as `run_training`; every cell's config is looked at before the first is trained.
    """
    grid = cells(ablation)
    configs = [cell_config(ablation, cell, overrides) for cell in grid]
    for number, (cell, cfg) in enumerate(zip(grid, configs, strict=True), 1):
        logger.info("%d/%d: %s, %s, seed %d", number, len(grid), cell.row, cell.column, cell.seed)
        run = run_training(cfg, resume=True)
        top1 = run.metrics.get("ema_top1", run.metrics["top1"])
        yield Result(**asdict(cell), top1=top1, macs=_macs(cfg, run.num_classes))


def _macs(cfg: CfgNode, num_classes: int) -> int:
    """MACs of a config's network at its resolution."""
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    resolution = preprocessing_of(cfg, arch).resolution
    if isinstance(arch, ArchDef):
        return cost_of(arch, resolution, num_classes=num_classes, in_chans=cfg.MODEL.IN_CHANS).macs
    return count_macs(arch, resolution, num_classes)


def summary(results: Sequence[Result]) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Mean, standard deviation and number of the top-1 of each (row, column)."""
    by_cell: dict[tuple[str, str], list[float]] = {}
    for result in results:
        by_cell.setdefault((result.row, result.column), []).append(result.top1)
    return {
        cell: (statistics.fmean(tops), statistics.stdev(tops) if len(tops) > 1 else 0.0, len(tops))
        for cell, tops in by_cell.items()
    }


def table(ablation: Ablation, results: Sequence[Result]) -> str:
    """The results as a Markdown table like the paper's: mean and standard deviation over the seeds."""
    from tabulate import tabulate

    found = summary(results)

    def shown(row: str, column: str) -> str:
        if (row, column) not in found:
            return ""
        mean, deviation, count = found[row, column]
        return f"{mean:.2f} %" + (f" ± {deviation:.2f}" if count > 1 else "")

    macs = {result.row: f"{result.macs / 1e6:,.1f} M" for result in results} if ablation.x else {}
    rows = [
        [row, *([macs.get(row, "")] if ablation.x else []), *(shown(row, column) for column in ablation.columns)]
        for row in ablation.rows
    ]
    headers = ["", *(["MACs"] if ablation.x else []), *ablation.columns]
    grid = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    seeds = f"mean and standard deviation over {len(ablation.seeds)} seeds" if len(ablation.seeds) > 1 else "one seed"
    return f"{ablation.title}: top-1, {seeds}\n\n{grid}"


def save_results(ablation: Ablation, results: Sequence[Result]) -> list[Path]:
    """Write `results.json`, `table.md` and `figure.png` into the output folder, and return their paths.

    Raises:
        OutputError: it cannot be written.
    """
    image = io.BytesIO()
    _draw(ablation, results).savefig(image, format="png")
    files = {
        "results.json": json.dumps([asdict(result) for result in results], indent=1).encode(),
        "table.md": table(ablation, results).encode() + b"\n",
        "figure.png": image.getvalue(),
    }
    try:
        ablation.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{ablation.output}: cannot be written ({error.strerror}): change `output`") from None
    for name, content in files.items():
        with atomic_write(ablation.output / name) as f:
            f.write(content)
    return [ablation.output / name for name in files]


def _draw(ablation: Ablation, results: Sequence[Result]) -> Any:
    """The figure: accuracy against MACs, or the cells side by side, with bars of one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    lines = _draw_against_macs(axes, ablation, results) if ablation.x else _draw_cells(axes, ablation, results)
    axes.set(ylabel="top-1, %", title=ablation.title)
    if lines > 1:
        axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_against_macs(axes: Any, ablation: Ablation, results: Sequence[Result]) -> int:
    """A line for each column, and for the rows that have one of their own. Returns how many."""
    macs = {result.row: result.macs / 1e6 for result in results}
    lines: dict[str, list[tuple[float, float, float, str]]] = {}
    for (row, column), (mean, deviation, _) in summary(results).items():
        line = ablation.rows[row].get(_LINE, column)
        lines.setdefault(line, []).append((macs[row], mean, deviation, row))
    for line, points in lines.items():
        x, means, deviations, names = zip(*sorted(points), strict=True)
        axes.errorbar(x, means, deviations, fmt="o-", capsize=3, label=line)
        for name, *place in zip(names, x, means, strict=True):
            axes.annotate(name, place, textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.set_xlabel("MACs, millions")
    return len(lines)


def _draw_cells(axes: Any, ablation: Ablation, results: Sequence[Result]) -> int:
    """The columns beside each other, row by row. Returns how many there are."""
    found, rows, columns = summary(results), list(ablation.rows), list(ablation.columns)
    for number, column in enumerate(columns):
        there = [row for row in rows if (row, column) in found]
        means, deviations = ([found[row, column][i] for row in there] for i in (0, 1))
        shift = (number - (len(columns) - 1) / 2) * 0.6 / len(columns)
        axes.errorbar([rows.index(row) + shift for row in there], means, deviations, fmt="o", capsize=3, label=column)
    axes.set_xticks(range(len(rows)), rows)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    return len(columns)
