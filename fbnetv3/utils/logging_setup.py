"""Logging and warnings: quieting third parties, logging from rank 0 only, copies to a file."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from fbnetv3.utils.text import describe_error


@contextlib.contextmanager
def quiet_logger(name: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Raise the level of one third-party logger within the block."""
    logger = logging.getLogger(name)
    previous = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(previous)


@contextlib.contextmanager
def quiet_standard_error() -> Iterator[None]:
    """Discard what this process and its children write to the standard error within the block."""
    try:
        original = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as devnull:  # noqa: PTH123
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


@contextlib.contextmanager
def quiet_detectron2() -> Iterator[None]:
    """Suppress torch's warnings about calls inside detectron2, which users cannot change, within the block."""
    with quiet_logger("torch.fx._symbolic_trace", logging.ERROR), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        yield


@contextlib.contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress all Python warnings and all log records up to WARNING within the block."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def quiet_terminal(level: int = logging.WARNING) -> Iterator[None]:
    """Show only this package's records of `level` and above; log files added within the block still get all."""

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno >= level or not record.name.startswith("fbnetv3")

    # Filter in the present handlers rather than in the logger, so that later log files get everything
    handlers = [*logging.getLogger("fbnetv3").handlers, *logging.root.handlers]
    if logging.lastResort:  # prints warnings where there is no handler
        handlers.append(logging.lastResort)
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


def quiet_other_ranks(rank: int) -> contextlib.AbstractContextManager:
    """Show only errors on ranks other than 0 within the block."""
    return quiet_terminal(logging.ERROR) if rank else contextlib.nullcontext()


class _FileFormatter(logging.Formatter):
    """Shortens a traceback to its last line; the process that fails prints all of it."""

    def format(self, record: logging.LogRecord) -> str:
        # A copy, because other handlers share the record
        record = copy.copy(record)
        error = record.exc_info[1] if record.exc_info else None
        record.exc_info = record.exc_text = None
        return f"{super().format(record)} {describe_error(error)}" if error else super().format(record)


@contextlib.contextmanager
def log_to_file(file: Path, *packages: str) -> Iterator[None]:
    """Copy the log records of packages (default: this one) to a file within the block."""
    handler = logging.FileHandler(file)
    handler.setFormatter(_FileFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    loggers = [logging.getLogger(name) for name in packages or ("fbnetv3",)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
