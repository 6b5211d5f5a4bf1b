"""Tables of a detector's evaluation: a row per dataset and task, and a row per class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from fbnetv3.utils.files import write_csv, write_json

Results = dict[str, dict[str, dict[str, float]]]
"""Average precision in percent: {dataset: {"bbox": {"AP": 23.0, ..., "AP-cat": 30.1}}}."""

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RESULTS_FILE = "results.json"
CLASS_TABLE = "per_class.csv"

_CLASS_PREFIX = "AP-"
_MAX_SHOWN = 20  # classes in the terminal


def detection_table(results: Results) -> str:
    """Format results as a table with a row for each dataset and task."""
    rows = [
        [name, task, *(format_precision(values[column]) if column in values else "" for column in COLUMNS)]
        for name, tasks in results.items()
        for task, values in tasks.items()
    ]
    return tabulate(rows, ["dataset", "task", *COLUMNS], disable_numparse=True)


def class_tables(results: Results) -> str:
    """Format the average precision of each class, best first, with a column per task; one table per dataset.

    Of more than 20 classes, the best and the worst are shown.
    """
    tables = []
    for name, tasks in results.items():
        rows = [[label, *map(format_precision, values)] for label, *values in _class_rows(tasks)]
        if len(rows) > _MAX_SHOWN:
            half = _MAX_SHOWN // 2
            gap = [f"... {len(rows) - 2 * half} more in {CLASS_TABLE}", *("" for _ in tasks)]
            rows = [*rows[:half], gap, *rows[-half:]]
        if rows:
            headers = [f"class of {name}", *(f"AP ({task})" for task in tasks)]
            tables.append(tabulate(rows, headers, disable_numparse=True))
    return "\n\n".join(tables)


def write_results(folder: Path, tasks: Mapping[str, Mapping[str, float]]) -> None:
    """Write the results of a dataset to a folder: all values as JSON, null where there is nothing to find, and a CSV.

    The CSV has a row per class, best first, and a column per task.
    """
    as_json = {
        task: {key: value if math.isfinite(value) else None for key, value in values.items()}
        for task, values in tasks.items()
    }
    write_json(folder / RESULTS_FILE, as_json)
    rows = ([label, *map(format_precision, values)] for label, *values in _class_rows(tasks))
    write_csv(folder / CLASS_TABLE, ["class", *(f"AP ({task})" for task in tasks)], rows)


def _class_rows(tasks: Mapping[str, Mapping[str, float]]) -> list[list]:
    """Return the classes with their average precision in each task, by that of the first task, best first."""
    labels = dict.fromkeys(
        key.removeprefix(_CLASS_PREFIX)
        for values in tasks.values()
        for key in values
        if key.startswith(_CLASS_PREFIX)
    )
    rows = [
        [label, *(values.get(f"{_CLASS_PREFIX}{label}", math.nan) for values in tasks.values())]
        for label in labels
    ]
    # Classes without objects come last
    return sorted(rows, key=lambda row: (math.isnan(row[1]), -row[1] if row[1] == row[1] else 0, row[0]))


def format_precision(value: float) -> str:
    """Return average precision with two decimals; "n/a" for NaN, where there is nothing to detect."""
    return f"{value:.2f}" if math.isfinite(value) else "n/a"
