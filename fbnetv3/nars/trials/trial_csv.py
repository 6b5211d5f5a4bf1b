"""CSV files that carry candidates to where they are evaluated, and their values back."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.files import write_text

_TRIAL = "trial"
_EPOCHS = "epochs"
_VALUE = "value"


def write_candidates(file: str | os.PathLike, space: Space, candidates: Sequence[Candidate]) -> None:
    """Write candidates to a CSV file: trial, epochs, a column for each variable, and an empty column for the value."""
    names = [variable.name for variable in space.variables]
    lines = [[_TRIAL, _EPOCHS, *names, _VALUE]]
    for candidate in candidates:
        values = [str(candidate.get(name, "")) for name in names]
        lines.append([str(candidate.number), str(candidate.epochs), *values, ""])
    path = Path(file).expanduser()
    write_text(path, "".join(_format_line(line) for line in lines))


def _format_line(cells: Sequence[str]) -> str:
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n') else cell for cell in cells]
    return ",".join(quoted) + "\n"


def read_values(file: str | os.PathLike) -> dict[int, tuple[float, ...]]:
    """Read the values in a CSV file by the number of their trial; rows without a value are left out.

    A value is a number, or several numbers separated by spaces: the value after each epoch.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a value that is no number.
    """
    path = Path(file).expanduser()
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error})") from None
    values = {}
    for line, row in enumerate(rows, 2):
        if _TRIAL not in row or _VALUE not in row:
            raise UsageError(
                f'{path}: must have the columns "{_TRIAL}" and "{_VALUE}"; keep those of the file'
            )
        cells = (row[_VALUE] or "").split()
        if not cells:
            continue
        try:
            values[int(row[_TRIAL])] = tuple(map(float, cells))
        except ValueError:
            problem = f"trial {row[_TRIAL]!r} has the value {row[_VALUE]!r}"
            raise UsageError(f"{path}, line {line}: {problem}; both must be numbers") from None
    return values
