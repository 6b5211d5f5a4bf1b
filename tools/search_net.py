#!/usr/bin/env python3
"""Search for networks and training recipes, or show a search: `search_net.py --config FILE [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.search_config import load_search_config
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.progress_table import ProgressTable, describe_search
from fbnetv3.nars.report.search_analysis import save_analysis
from fbnetv3.utils.command_line import ArgumentParser, run_tool

OTHER_COMMANDS = """
other commands:
  search_net.py status FOLDER   show the progress of a running or finished search
  search_net.py report FOLDER   rewrite the HTML report of a search
"""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("status", "report"):
        show_search(*argv)
    else:
        start_search(argv)


def start_search(argv: Sequence[str]) -> None:
    parser = ArgumentParser(
        description="Search for networks and training recipes.",
        epilog=OTHER_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/nars/")
    parser.add_argument("--resume", action="store_true", help="resume the search in the output folder")
    parser.add_argument("--output", metavar="DIR", help="output folder (default: the config's)")
    parser.add_argument(
        "--executor",
        metavar="NAME",
        help="local, serial, ray, or a registered name (default: the config's)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="address of a Ray cluster (default: start Ray on this machine)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="settings to change, such as rounds 3"
    )
    args = parser.parse_intermixed_args(argv)
    # --executor and --address set the settings of the same names
    overrides = list(args.overrides)
    for key in ("executor", "address"):
        if getattr(args, key):
            overrides += [key, getattr(args, key)]
    config = load_search_config(args.config, overrides)
    folder = Path(args.output or config.output)
    result = search(
        config.space,
        config.evaluator,
        folder,
        config.settings,
        resume=args.resume,
        on_progress=ProgressTable(),
    )
    for recommendation in result.recommendations:
        files = recommendation.files
        columns = ", ".join(f"{name} {value:,.6g}" for name, value in recommendation.columns.items())
        print(f"{files.name}: predicted {recommendation.predicted:.4g}; {columns}")
        print(f"  {files.config or files.provenance}")
    save_analysis(result)
    print(f"report: {write_report(folder)}")


def show_search(command: str, *argv: str) -> None:
    descriptions = {
        "status": "Show the progress of a search.",
        "report": "Rewrite the HTML report of a search.",
    }
    parser = ArgumentParser(prog=f"search_net.py {command}", description=descriptions[command])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="output folder of a search")
    folder = parser.parse_args(argv).folder
    print(describe_search(folder) if command == "status" else write_report(folder))


if __name__ == "__main__":
    run_tool(main, after_interrupt="add --resume to continue; finished trials are kept", sigterm=True)
