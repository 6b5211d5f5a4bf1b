"""Exceptions whose messages are written for users: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. Tools print its message on one line and exit with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(str(a) for a in self.args)


class UsageError(UserError, ValueError):
    """An invalid argument, config key or config value."""

    exit_code = 2


class FieldError(UsageError):
    """An invalid value in a file or an object. The message names the field and, if known, the file.

    `field` is a dotted path, such as "stages[0].rows[1].kernel".
    """

    def __init__(self, message: str, field: str = "", file: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.file = file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.message) if part)


class UnknownNameError(UsageError, KeyError):
    """A name that is not registered. The message suggests similar ones."""


class DataError(UserError, ValueError):
    """A dataset that is missing, empty or corrupt."""


class WeightsError(UserError, ValueError):
    """A weights file that is missing, corrupt, unsafe, in an unknown format or made for a different network."""


class OutputError(UserError, OSError):
    """An output file or folder that cannot be written."""


class ExportError(UserError, ValueError):
    """A network that cannot be exported, an export that differs from its network, or a corrupt exported folder."""


class DeviceMemoryError(UserError, MemoryError):
    """A GPU or CPU without enough memory for what it was asked to compute."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


class Terminated(BaseException):
    """Raised on SIGTERM, as KeyboardInterrupt is on SIGINT: a scheduler wants the process to exit."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Build the end of an error message for an unknown name: up to three similar names, or else up to twelve others."""
    choices = sorted(choices)
    similar = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if similar:
        *others, last = similar
        return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
    more = f" and {len(choices) - 12} more" if len(choices) > 12 else ""
    return f"available: {', '.join(choices[:12])}{more}" if choices else "there are none"


# As of torch 2.14, a CPU's allocator, cuBLAS and the driver have no exception type of their own
_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of torch, which this module does not import, is about a lack of memory."""
    if any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
