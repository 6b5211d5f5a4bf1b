"""Turn what optional packages and exporters raise into one-line errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fbnetv3.errors import ExportError, MissingPackageError, UserError
from fbnetv3.utils.logging_setup import suppress_warnings
from fbnetv3.utils.text import one_line


@contextlib.contextmanager
def require_packages(*packages: str) -> Iterator[None]:
    """Turn an ImportError within the block into an error that says what to install."""
    try:
        yield
    except ImportError as error:
        names = " ".join(packages)
        raise MissingPackageError(f"{names} cannot be imported ({error}): run pip install {names}") from None


@contextlib.contextmanager
def as_export_errors(exporter: str) -> Iterator[None]:
    """Turn what an exporter raises, which may be almost anything, into an ExportError, and suppress its warnings.

    Errors that are already written for users, out of memory and operating system errors pass unchanged.
    """
    try:
        with suppress_warnings():
            yield
    except (MemoryError, OSError, UserError):
        raise
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise ExportError(f"{exporter} cannot export this network: {reason}") from error


def unreadable_model(model: Path | str, runtime: str, error: Exception) -> ExportError:
    """Build the error for a model file that its runtime cannot read."""
    return ExportError(f"{model}: {runtime} cannot read it ({one_line(error, 200)}): export it again")
