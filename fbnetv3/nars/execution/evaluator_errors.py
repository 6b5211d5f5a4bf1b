"""Errors of evaluators: one line that names its origin for the user, and the full traceback in a log."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from pathlib import Path

import fbnetv3
from fbnetv3.nars.execution.attempts import Outcome
from fbnetv3.utils.files import make_folder
from fbnetv3.utils.text import describe_error

TRACEBACKS_FILE = "tracebacks.txt"
"""Log of executors whose workers have none of their own."""

_MAX_LENGTH = 300  # of an error's message
_LIBRARIES = {"site-packages", "dist-packages"}
_PACKAGE = Path(fbnetv3.__file__).parent
_STANDARD_LIBRARY = Path(os.__file__).parent


def describe_evaluator_error(error: BaseException) -> str:
    """Return "TypeError: the message (in file.py, line N)".

    The line is the last one in the user's own code, or else the one that raised the error.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if _is_own_code(frame.filename)]
    frame = (own_frames or frames)[-1]
    return (
        f"{describe_error(error, _MAX_LENGTH)} (in {os.path.basename(frame.filename)}, line {frame.lineno})"
    )


def _is_own_code(filename: str) -> bool:
    """Return whether a file belongs to neither a library, nor Python, nor this package."""
    path = Path(filename)
    is_library = path.is_relative_to(_STANDARD_LIBRARY) or bool(_LIBRARIES & set(path.parts))
    return not (is_library or path.is_relative_to(_PACKAGE) or filename.startswith("<frozen"))


def log_traceback(outcome: Outcome, trial: int, log: Path) -> Outcome:
    """Append the traceback of a trial's outcome to a log, and name the log in its error; keep other outcomes."""
    if outcome.traceback is None:
        return outcome
    try:
        make_folder(log.parent)
        with log.open("a", encoding="utf-8", errors="replace") as f:
            f.write(f"--- trial {trial}: traceback\n{outcome.traceback}")
    except OSError:  # a full disk must not end the search
        return replace(outcome, traceback=None)
    # The logs are in the search's output folder, which may be moved
    error = f"{outcome.error}; traceback in {log.parent.name}/{log.name}"
    return replace(outcome, error=error, traceback=None)
