"""Command-line support shared by all tools: argument parsing, logging to the terminal, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fbnetv3.errors import Terminated, UserError, is_out_of_memory
from fbnetv3.utils.imports import import_modules
from fbnetv3.utils.text import one_line

# Error messages may quote a file's content; longer ones are shortened
_MAX_MESSAGE_LENGTH = 4000


class _ImportModule(argparse.Action):
    def __call__(
        self, parser: object, namespace: object, values: Any, option_string: str | None = None
    ) -> None:
        import_modules([values], "--import")


class _HelpFormatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS)
        if not has_default or "(default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-line errors, defaults in the help, and `--import MODULE` for users' modules."""

    def __init__(self, formatter_class: Any = _HelpFormatter, **kwargs: Any) -> None:
        super().__init__(formatter_class=formatter_class, **kwargs)
        self.add_argument(
            "--import",
            action=_ImportModule,
            default=argparse.SUPPRESS,
            metavar="MODULE",
            help="import a module that registers your own datasets, blocks, losses and so on (can be repeated)",
        )

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and a one-line message."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def program_name() -> str:
    """Return the name of the running program, such as "train_net.py" or "fbnetv3 train"."""
    return os.path.basename(sys.argv[0])


def is_multi_process() -> bool:
    """Return whether torchrun's variables say that this is one of several processes."""
    return os.environ.get("WORLD_SIZE", "") not in ("", "0", "1")


def positive_int(text: str) -> int:
    """Parse an integer that is at least 1, as the `type` of an argparse argument."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


class _TerminalHandler(logging.StreamHandler):
    """Logs to the terminal; a reader that has exited, as in `tool | head`, ends the tool."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Raise the error of a closed pipe, which logging would print with a traceback."""
        error = sys.exc_info()[1]
        if isinstance(error, BrokenPipeError):
            raise error
        super().handleError(record)


def run_tool(
    main: Callable[[Sequence[str] | None], object],
    argv: Sequence[str] | None = None,
    *,
    after_interrupt: str = "",
    sigterm: bool = False,
) -> None:
    """Run a tool and exit with its code.

    The code is 0 for success, 2 for invalid usage, 1 for other errors, 130 for Ctrl-C and 143 for SIGTERM (128 plus the
    signal's number, as shells and schedulers expect). `UserError`s and errors of the operating system are printed on
    one line, without a traceback. Under torchrun, ranks other than 0 print only their errors.

    Args:
        main: the tool.
        argv: its arguments; default: those of the command line.
        after_interrupt: advice for the user after Ctrl-C or SIGTERM.
        sigterm: exit on SIGTERM as on Ctrl-C. Leave it False for tools that handle SIGTERM themselves, such as
            training.
    """
    rank_text = os.environ.get("RANK", "")
    rank = int(rank_text) if is_multi_process() and rank_text.isdecimal() else 0
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (open until the process ends)
    # File names that are not UTF-8 are printed with backslashes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Log to the terminal while the tool runs
    handler = _TerminalHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("fbnetv3")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    previous = signal.signal(signal.SIGTERM, _raise_terminated) if sigterm else None
    try:
        code = _run(main, argv, rank, after_interrupt)
    finally:
        logger.removeHandler(handler)
        if sigterm:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    sys.exit(code)


def _run(
    main: Callable[[Sequence[str] | None], object],
    argv: Sequence[str] | None,
    rank: int,
    after_interrupt: str,
) -> int:
    """Run a tool, print its error if it fails, and return the exit code."""
    prefix = f"[process {rank}] error: " if rank else "error: "
    code = 1
    try:
        main(argv)
        return 0
    except UserError as error:
        code = error.exit_code
        message = prefix + one_line(error, _MAX_MESSAGE_LENGTH)
    except MemoryError:
        message = f"{prefix}out of memory"
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = prefix + one_line(error, _MAX_MESSAGE_LENGTH)
    except BrokenPipeError:  # the reader of our output has exited, as in `tool | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        message = prefix + file + one_line(error.strerror or error, _MAX_MESSAGE_LENGTH)
    except (KeyboardInterrupt, Terminated) as error:
        code, word = (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (143, "terminated")
        if rank:
            return code
        message = f"{word}; {after_interrupt}" if after_interrupt else word
    # Write with a single call, so that lines of several processes do not mix
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    return code


def _raise_terminated(number: int, frame: object) -> None:
    """Handle SIGTERM: raise once, and ignore repeats while open files are closed."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated
