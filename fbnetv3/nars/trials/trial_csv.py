"""CSV files that carry candidates to where they are evaluated, and their values back."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.files import expand_path, write_text

_TRIAL = "trial"
_EPOCHS = "epochs"
_VALUE = "value"


def write_rows(file: str | os.PathLike, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a CSV file with a header; return its path. What a row lacks is left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    path = expand_path(file)
    write_text(path, text.getvalue())
    return path


def write_candidates(
    file: str | os.PathLike, space: Space, candidates: Sequence[Candidate], objectives: Sequence[str] = ()
) -> None:
    """Write candidates to a CSV file: trial, epochs, the variables, and an empty column for each value to fill in.

    This is "value", or one column for each of the objectives.
    """
    variables = [variable.name for variable in space.variables]
    columns = [_TRIAL, _EPOCHS, *variables, *(objectives or [_VALUE])]
    rows = [{_TRIAL: item.number, _EPOCHS: item.epochs, **item} for item in candidates]
    write_rows(file, columns, rows)


def read_values(file: str | os.PathLike, objectives: Sequence[str] = ()) -> dict[int, Any]:
    """Read the values in such a file by the number of their trial, as `Search.tell` takes them.

    A value is a number, or several numbers separated by spaces: the value after each epoch. Rows without values are
    left out.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a value that is no number.
    """
    path = expand_path(file)
    rows = _read_rows(path)
    columns = [*(objectives or [_VALUE])]
    values: dict[int, Any] = {}
    for line, row in enumerate(rows, 2):
        missing = [column for column in (_TRIAL, *columns) if column not in row]
        if missing:
            raise UsageError(f'{path}: lacks the column "{missing[0]}"; keep the columns that the file had')
        if not any(row[column] for column in columns):
            continue
        try:
            number = int(row[_TRIAL])
            curves = {column: _parse_curve(row[column]) for column in columns}
        except ValueError:
            cells = ", ".join(f"{column} {row[column]!r}" for column in (_TRIAL, *columns))
            raise UsageError(f"{path}, line {line}: {cells} must be numbers") from None
        values[number] = curves if objectives else curves[_VALUE]
    return values


def find_listed(file: str | os.PathLike) -> set[int]:
    """Return the numbers of the trials in such a file; none if there is no such file."""
    path = expand_path(file)
    numbers = [row.get(_TRIAL) or "" for row in _read_rows(path)] if path.is_file() else []
    return {int(number) for number in numbers if number.isdecimal()}


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error})") from None


def _parse_curve(cell: str) -> list[float] | float:
    numbers = [float(text) for text in cell.split()]
    if not numbers:
        raise ValueError
    return numbers[0] if len(numbers) == 1 else numbers
