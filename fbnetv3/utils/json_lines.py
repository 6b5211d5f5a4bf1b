"""JSON lines: one JSON object per line, appended as a run proceeds, and readable even after the run was killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fbnetv3.utils.files import as_output_error, write_text


def append_json_line(file: Path, entry: dict[str, Any]) -> None:
    """Append one entry."""
    with as_output_error(file), file.open("a") as f:
        f.write(json.dumps(entry) + "\n")


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read all entries. Skip lines that are not a JSON object, such as a last line cut off by a kill."""
    entries = []
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def write_json_lines(file: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Atomically replace the contents of the file with these entries."""
    write_text(file, "".join(json.dumps(entry) + "\n" for entry in entries))


def drop_partial_line(file: Path) -> None:
    """Truncate a file after its last complete line; a writer that was killed may leave part of a line."""
    data = file.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        with as_output_error(file):
            os.truncate(file, complete)
