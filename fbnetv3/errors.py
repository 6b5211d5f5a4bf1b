"""Errors whose text is written for the user: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Anything that the user can mend. The tools print its text on one line and exit with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(str(a) for a in self.args)


class UsageError(UserError, ValueError):
    """A wrong argument, config key or config value."""

    exit_code = 2


class UnknownNameError(UserError, KeyError):
    """A name that no registry knows. The text suggests close ones."""

    exit_code = 2


class DataError(UserError, ValueError):
    """A dataset that is missing, empty or damaged."""


class WeightsError(UserError, ValueError):
    """A weights file that is missing, damaged, foreign, unsafe or made for another network."""


class OutputError(UserError, OSError):
    """An output folder that cannot be written."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name: close matches where there are some, else all that is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}" if known else "nothing is registered"
