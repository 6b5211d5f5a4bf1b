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


class FieldError(UsageError):
    """A value in a file or an object that makes no sense. Names the field at fault, and the file where there is one."""

    def __init__(self, message: str, field: str = "", file: str = "") -> None:
        super().__init__(message)
        self.message, self.field, self.file = message, field, file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)

    def within(self, parent: str) -> FieldError:
        """The same error, seen from the object that holds the field."""
        return type(self)(self.message, f"{parent}.{self.field}" if self.field else parent, self.file)

    def in_file(self, file: str) -> FieldError:
        """The same error, with the file that it was read from, unless it names one already."""
        return self if self.file else type(self)(self.message, self.field, file)


class UnknownNameError(UserError, KeyError):
    """A name that no registry knows. The text suggests close ones."""

    exit_code = 2


class DataError(UserError, ValueError):
    """A dataset that is missing, empty or damaged."""


class WeightsError(UserError, ValueError):
    """A weights file that is missing, damaged, foreign, unsafe or made for another network."""


class OutputError(UserError, OSError):
    """An output folder that cannot be written."""


class ExportError(UserError, ValueError):
    """A network that cannot be exported, an export that differs from its network, or an exported folder that is
    damaged."""


class MissingPackageError(UserError, ImportError):
    """A package that only some of the project needs, and that is not installed."""


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT: a scheduler wants the process to end."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name: close matches where there are some, else all that is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}" if known else "nothing is registered"
