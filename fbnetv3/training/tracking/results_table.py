"""A table of all training runs of a folder, collected from the runs' own files, so that it is never out of step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fbnetv3.errors import OutputError
from fbnetv3.utils.files import expand_path, write_csv

RESULTS_TABLE = "results.csv"
RESULT_FILE = "result.json"
"""Name of a run's result in its folder."""

COLUMNS = (
    "run",
    "arch",
    "data",
    "top1",
    "ema_top1",
    "map",
    "ema_map",
    "f1",
    "ema_f1",
    "ap",
    "ap50",
    "best",
    "loss",
    "epoch",
    "epochs",
    "parameters",
    "macs",
    "resolution",
    "optimizer",
    "lr",
    "batch_size",
    "schedule",
    "weight_decay",
    "label_smoothing",
    "mixup",
    "auto_augment",
    "ema",
    "teacher",
    "weights",
    "seed",
    "seconds",
    "date",
    "data_root",
)
"""Columns of the table; `run` is the name of the run's folder."""


def collect_results(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the results of the runs in the subfolders of a folder, by name; each has the keys `COLUMNS`.

    Values that a run does not have are None; files that are corrupt are left out.
    """
    results = []
    for file in sorted(expand_path(folder).glob(f"*/{RESULT_FILE}")):
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(result, dict):
            row = {name: result.get(name) for name in COLUMNS}
            results.append({**row, "run": file.parent.name})
    return results


def update_results_table(folder: str | os.PathLike) -> Path:
    """Write the table of the runs in a folder, and return its path.

    Several runs may do so at once. Each has written its own result before, and collects again after it has replaced
    the table, until nothing has changed; so the last one to replace it has seen all results, without any lock.

    Raises:
        OutputError: the table cannot be written, or the file is not such a table.
    """
    file = expand_path(folder) / RESULTS_TABLE
    _check_is_table(file)
    written = None
    while (results := collect_results(folder)) != written:
        write_csv(file, COLUMNS, ([result[name] for name in COLUMNS] for result in results))
        written = results
    return file


def _check_is_table(file: Path) -> None:
    """Raise an OutputError for a file of another origin, which must not be replaced."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as f:
        header = f.readline().strip().split(",")
    if header[:2] != list(COLUMNS[:2]):
        raise OutputError(f"{file}: is not a table of runs: rename it, or set LOG.RESULTS False")
