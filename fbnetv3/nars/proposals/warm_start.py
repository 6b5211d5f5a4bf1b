"""Warm start: earlier measurements, also from other spaces, tell a search where to look first.

A Gaussian process on the variables that both have in common predicts each candidate from the earlier measurements. The
search's model weights this prediction by what it is worth on its own trials, so that measurements of something else do
no harm.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import FieldError
from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.trial_store import TRIALS_FILE, TrialStore
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.yaml_files import parse_number

VALUE = "value"
"""Column of measured values in a table."""
_MIN_ROWS = 3
_MAX_ROWS = 300  # the best of more


Source = str | os.PathLike | Sequence[Mapping[str, Any]] | Any
"""Folder of a search, CSV file, data frame, or list of mappings; with a column for each variable, and "value"."""


@dataclass(frozen=True)
class WarmStart:
    """Predictions from earlier measurements, one for each source."""

    space: Space
    columns: tuple[np.ndarray, ...]  # positions of the variables in common, for each source
    processes: tuple[GaussianProcess, ...]
    best: np.ndarray  # best candidate of each source that has all variables, integers (N, variables)
    digest: str  # SHA-256 of the measurements, in hex

    def covariates(self, candidates: np.ndarray) -> np.ndarray:
        """Predict candidates, integers (N, variables), from each source, (N, sources), with about deviation 1."""
        predicted = [
            process.predict(candidates[:, columns]).mean
            for columns, process in zip(self.columns, self.processes, strict=True)
        ]
        return np.stack(predicted, 1) if predicted else np.zeros((len(candidates), 0))


def build_warm_start(sources: Sequence[Source], space: Space, sign: float) -> WarmStart:
    """Fit a process to each source of measurements; `sign` is -1 if lower values are better.

    Raises:
        FieldError: a source cannot be read, or has too few measurements of variables of the space.
    """
    columns = []
    processes = []
    best = [np.zeros((0, len(space)), np.int64)]
    digest = hashlib.sha256()
    for index, source in enumerate(sources):
        field = f"warm_start[{index}]"
        rows = _read_rows(source, field)
        digest.update(json.dumps(rows, default=str, sort_keys=True).encode())
        common = [
            i for i, variable in enumerate(space.variables) if any(variable.name in row for row in rows)
        ]
        if not common:
            names = ", ".join(variable.name for variable in space.variables)
            raise FieldError(f"has no variable of the space ({names}); name its columns after them", field)
        part = Space(space.name, space.select_variables([space.variables[i].name for i in common]))
        candidates, values = _encode_rows(rows, part, sign)
        if len(values) < _MIN_ROWS:
            raise FieldError(
                f"has {len(values)} measurements of values that the space has, but needs at least {_MIN_ROWS}; "
                f'the measured values are the column "{VALUE}"',
                field,
            )
        process = GaussianProcess(part)
        process.fit(candidates, AccuracyTransform.fit(values).transform(values))
        columns.append(np.array(common))
        processes.append(process)
        if len(common) == len(space):
            best.append(candidates[[int(np.argmax(values))]])
    return WarmStart(space, tuple(columns), tuple(processes), np.concatenate(best), digest.hexdigest())


def _read_rows(source: Source, field: str) -> list[dict[str, Any]]:
    if isinstance(source, (str, os.PathLike)):
        path = expand_path(source)
        if (path / TRIALS_FILE).exists():
            return _read_search(path)
        try:
            with path.open(newline="") as file:
                return [_parse_row(row) for row in csv.DictReader(file)]
        except (OSError, ValueError, csv.Error) as error:
            raise FieldError(
                f"{path} is neither a search's folder nor a CSV file ({error})", field
            ) from None
    rows: Any = source.to_dict("records") if hasattr(source, "to_dict") else source
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise FieldError(
            "must be a search's folder, a CSV file, a data frame, or a list of mappings from variables to values",
            field,
        )
    return [dict(row) for row in rows]


def _read_search(folder: Path) -> list[dict[str, Any]]:
    """Return values of the trials that ran longest."""
    store = TrialStore(folder)
    try:
        trials = store.trials()
    finally:
        store.close()
    longest = max((len(trial.curve) for trial in trials), default=0)
    return [
        {**trial.values, VALUE: trial.curve[-1]}
        for trial in trials
        if trial.curve and len(trial.curve) == longest
    ]


def _parse_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a CSV file with numbers and booleans instead of text; empty cells are left out."""
    words = {"True": True, "False": False}
    return {
        key: words.get(text, parse_number(text)) for key, text in row.items() if key is not None and text
    }


def _encode_rows(
    rows: Sequence[Mapping[str, Any]], space: Space, sign: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates, integers (N, variables), and values, (N,), of the rows that the space can represent."""
    names = {variable.name for variable in space.variables}
    candidates = [np.zeros((0, len(space)), np.int64)]
    values = []
    for row in rows:
        value = row.get(VALUE)
        if not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
            continue
        try:
            candidates.append(space.encode({name: row[name] for name in names & set(row)})[None])
        except FieldError:  # a value that the space does not have
            continue
        values.append(sign * float(value))
    order = np.argsort(-np.array(values), kind="stable")[:_MAX_ROWS]
    return np.concatenate(candidates)[order], np.array(values)[order]
