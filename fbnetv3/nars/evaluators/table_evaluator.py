"""An evaluator that looks up accuracies in a table, so a search over a benchmark takes seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from fbnetv3.errors import FieldError, suggest
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.files import expand_path


class TableError(FieldError):
    """A table of measurements that cannot be read, or that has no entry for a candidate."""


class TableEvaluator:
    """Looks up measurements of candidates in a JSON file.

    The file maps names of candidates to mappings of measurements. A candidate's name is the values of its variables,
    in the order of the space, joined by `separator`. The measurement `accuracy` is a number, or a list with one number
    per epoch.
    """

    def __init__(self, file: str | os.PathLike, accuracy: str = "accuracy", separator: str = "") -> None:
        self.file = str(file)
        self.accuracy = accuracy
        self.separator = separator
        self.rows = read_table(file)

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        """Look up the accuracies of a candidate."""
        name = self.separator.join(str(value) for value in candidate.values())
        if name not in self.rows:
            raise TableError(f"has no candidate {name}", file=self.file)
        row = self.rows[name]
        if self.accuracy not in row:
            raise TableError(
                f"no measurement '{self.accuracy}': {suggest(self.accuracy, row)}", name, self.file
            )
        # A single number counts for every epoch
        measured = row[self.accuracy]
        return measured[:epochs] if isinstance(measured, list) else [measured] * epochs


def read_table(file: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read a JSON table of measurements: a mapping from names of candidates to their measurements."""
    try:
        rows = json.loads(expand_path(file).read_text())
    except (OSError, ValueError) as error:
        raise TableError(f"cannot be read as JSON ({error})", file=str(file)) from None
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise TableError("must be a mapping from candidates to their measurements", file=str(file))
    return rows
