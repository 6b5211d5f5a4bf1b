"""Table and figure of an ablation's results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fbnetv3.experiments.ablation import Ablation, CellResult
from fbnetv3.utils.files import make_folder, write_json, write_text
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes


@dataclass(frozen=True)
class CellSummary:
    """Top-1 accuracy of a (row, column) over the seeds, in percent."""

    mean: float
    deviation: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}%" + (f" ± {self.deviation:.2f}" if self.num_seeds > 1 else "")


Summaries = dict[tuple[str, str], CellSummary]  # by (row, column)


def summarize_results(results: Sequence[CellResult]) -> Summaries:
    """Compute mean and standard deviation over the seeds."""
    accuracies: dict[tuple[str, str], list[float]] = {}
    for result in results:
        accuracies.setdefault((result.row, result.column), []).append(result.top1)
    return {
        cell: CellSummary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
        for cell, values in accuracies.items()
    }


def results_table(ablation: Ablation, results: Sequence[CellResult]) -> str:
    """Format the results as a Markdown table."""
    summaries = summarize_results(results)
    # Columns of the table; cells without a result stay empty
    table = {"": list(ablation.rows)}
    if ablation.x:
        macs = {result.row: f"{result.macs / 1e6:,.1f} M" for result in results}
        table["MACs"] = [macs.get(row, "") for row in ablation.rows]
    for column in ablation.columns:
        table[column] = [str(summaries.get((row, column), "")) for row in ablation.rows]
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
    summaries = summarize_results(results)
    if ablation.x:
        _draw_over_macs(axes, ablation, summaries, {result.row: result.macs / 1e6 for result in results})
    else:
        _draw_side_by_side(axes, ablation, summaries)
    style_axes(axes, ylabel="top-1, %", title=ablation.title)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False)
    save_figure(figure, figure_file)
    return files


def _draw_over_macs(axes: Any, ablation: Ablation, summaries: Summaries, macs: dict[str, float]) -> None:
    """Draw one line per column, and one per line named by rows; `macs` are in millions."""
    # Collect the points of each line
    lines: dict[str, list[tuple[float, str, CellSummary]]] = {}
    for (row, column), summary in summaries.items():
        lines.setdefault(ablation.lines.get(row, column), []).append((macs[row], row, summary))
    # Draw each line from left to right, with the rows' names at its points
    for line, points in lines.items():
        points.sort(key=lambda point: point[0])
        _draw_cells(axes, [(x, summary) for x, _, summary in points], line, "o-")
        for x, row, summary in points:
            axes.annotate(row, (x, summary.mean), textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.set_xlabel("MACs, millions")


def _draw_side_by_side(axes: Any, ablation: Ablation, summaries: Summaries) -> None:
    """Draw the columns next to each other, row by row."""
    num_columns = len(ablation.columns)
    for index, column in enumerate(ablation.columns):
        # Spread the columns evenly around the row's tick
        offset = (index - (num_columns - 1) / 2) * 0.6 / num_columns
        rows = [(i + offset, (row, column)) for i, row in enumerate(ablation.rows)]
        _draw_cells(axes, [(x, summaries[cell]) for x, cell in rows if cell in summaries], column, "o")
    axes.set_xticks(range(len(ablation.rows)), list(ablation.rows))
    axes.set_xlim(-0.6, len(ablation.rows) - 0.4)


def _draw_cells(axes: Any, points: Sequence[tuple[float, CellSummary]], label: str, style: str) -> None:
    x = [position for position, _ in points]
    means = [summary.mean for _, summary in points]
    deviations = [summary.deviation for _, summary in points]
    axes.errorbar(x, means, deviations, fmt=style, capsize=3, label=label)
