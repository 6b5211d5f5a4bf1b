"""What the tools share: logging to the terminal, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fbnetv3.errors import Terminated, UserError
from fbnetv3.utils.imports import import_modules

_LONGEST = 4000  # characters of an error; what a file holds may be megabytes


class _ImportModule(argparse.Action):
    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        import_modules([values], "--import")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-line errors, and `--import MODULE` for users' modules that register things."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument(
            "--import",
            action=_ImportModule,
            default=argparse.SUPPRESS,
            metavar="MODULE",
            help="import a module that registers your own datasets, blocks, losses, ... (repeatable)",
        )

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and a one-line message."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def run_tool(
    main: Callable[[Sequence[str] | None], object],
    argv: Sequence[str] | None = None,
    *,
    after_interrupt: str = "",
    sigterm: bool = False,
) -> None:
    """Run a tool and exit: 0 when all went well, 2 for a wrong call, 1 for anything else, 130 for Ctrl-C, 143 for
    SIGTERM (128 and the signal, as shells and schedulers count).

    A `UserError`, or an error of the operating system, is printed as one line without a traceback. Of the processes
    that torchrun starts, the first one speaks; the others only say what has gone wrong with them.

    Args:
        main: takes the arguments, None for those of the command line.
        argv: arguments, for tests.
        after_interrupt: what to tell the user after Ctrl-C or SIGTERM.
        sigterm: let SIGTERM end the tool as Ctrl-C does; for tools that do not see to it themselves, as training does.
    """
    rank = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    if rank:
        sys.stdout = _Nowhere()
    prefix = f"[process {rank}] " if rank else ""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("fbnetv3")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    previous = signal.signal(signal.SIGTERM, _terminate) if sigterm else None
    try:
        main(argv)
        code = 0
    except UserError as error:
        code = error.exit_code
        _complain(f"{prefix}error: {_one_line(error)}")
    except MemoryError:
        code = 1
        _complain(f"{prefix}error: the memory has run out")
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:
        code = 1
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{prefix}error: {place}{_one_line(error.strerror or error)}")
    except (KeyboardInterrupt, Terminated) as error:
        code, word = (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (143, "terminated")
        if not rank:
            _complain("; ".join(filter(None, (word, after_interrupt))))
    finally:
        log.removeHandler(handler)
        if sigterm:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    sys.exit(code)


def _complain(line: str) -> None:
    """Write a line in one piece, so that those of several processes do not end up on one."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _terminate(number: int, frame: object) -> None:
    """A scheduler wants an end: once, so that what is open can be closed meanwhile."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def _one_line(message: object) -> str:
    line = " ".join(str(message).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
