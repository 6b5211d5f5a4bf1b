"""The `fbnetv3` command, and the entry point of the scripts in `tools/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import fbnetv3
from fbnetv3.errors import UnknownNameError, suggest
from fbnetv3.utils.command_line import run_tool


@dataclass(frozen=True)
class Command:
    """A subcommand: its module, which has a function `main`, and how it behaves."""

    module: str
    summary: str
    after_interrupt: str = ""  # advice after Ctrl-C
    sigterm: bool = False  # whether SIGTERM ends it as Ctrl-C does; training handles it itself


COMMANDS = {
    "train": Command(
        "train",
        "train a classifier or a detector",
        after_interrupt="add --resume to continue from the newest checkpoint, if there is one",
    ),
    "eval": Command("evaluate", "evaluate a checkpoint, a run or a network of the model zoo"),
    "predict": Command("predict", "classify images", sigterm=True),
    "detect": Command(
        "detect",
        "detect objects in images and videos",
        after_interrupt="the output folder has the results so far",
        sigterm=True,
    ),
    "search": Command(
        "search",
        "search for networks and training recipes",
        after_interrupt="add --resume to continue; finished trials are kept",
        sigterm=True,
    ),
    "export": Command(
        "export",
        "export a network and verify the export",
        after_interrupt="nothing was exported",
        sigterm=True,
    ),
    "serve": Command("serve", "answer HTTP requests with exported networks"),
    "measure": Command(
        "measure",
        "measure the latency of networks",
        after_interrupt="the table keeps what was measured; run the same command to resume",
        sigterm=True,
    ),
    "analyze": Command("analyze", "print the cost of networks and detectors"),
    "check-data": Command("data.check_data", "check a dataset before training"),
    "convert-annotations": Command(
        "data.convert_annotations", "convert annotations of boxes to COCO's or YOLO's format"
    ),
    "zoo": Command("zoo_entries", "list and download networks of the model zoo"),
}


def run(name: str) -> None:
    """Run a subcommand with the arguments of this process, and exit with its code."""
    command = COMMANDS[name]

    def main(argv: Sequence[str] | None) -> None:
        # Imported here, so that Ctrl-C while torch is imported ends with one line, too
        import_module(f"fbnetv3.commands.{command.module}").main(argv)

    run_tool(main, after_interrupt=command.after_interrupt, sigterm=command.sigterm)


def main() -> None:
    """Run `fbnetv3 COMMAND ARGUMENTS`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"fbnetv3 {name}"]  # argparse's name of the program
        run(name)
    run_tool(lambda _: _print_help(name))


def _print_help(name: str) -> None:
    if name == "--version":
        print(fbnetv3.__version__)
        return
    if name not in ("", "-h", "--help", "help"):
        raise UnknownNameError(f"unknown command '{name}': {suggest(name, COMMANDS)}")
    print("usage: fbnetv3 COMMAND ...\n\ncommands:")
    for command_name, command in COMMANDS.items():
        print(f"  {command_name:20} {command.summary}")
    print("\n`fbnetv3 COMMAND --help` lists the options of a command.")
