"""Search for networks and training recipes, or show a search: `fbnetv3 search --config FILE [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.ask_tell import Search
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.search_result import SearchResult
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.progress_table import ProgressTable, format_prediction
from fbnetv3.nars.report.report_watcher import watch_search
from fbnetv3.nars.report.saved_search import load
from fbnetv3.nars.report.search_analysis import save_analysis
from fbnetv3.nars.report.search_status import describe_search
from fbnetv3.nars.settings.search_config import load_search_config
from fbnetv3.nars.trials.trial_store import RUNNING
from fbnetv3.utils.command_line import ArgumentParser, positive_int, program_name

OTHER_COMMANDS = """
other commands:
  %(prog)s status FOLDER   show the progress of a running or finished search
  %(prog)s report FOLDER   rewrite the HTML report of a search; with --csv FILE, write its trials as a table
  %(prog)s ask --config FILE --csv FILE     write candidates that you evaluate yourself to a CSV file
  %(prog)s tell --config FILE --csv FILE    record their values
  %(prog)s watch FOLDER    rewrite the HTML report of a running search until it finishes
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Start or resume a search, or run another command on one."""
    argv = sys.argv[1:] if argv is None else argv
    command, *rest = argv or [""]
    if command in COMMANDS:
        COMMANDS[command](rest)
    else:
        _start_search(argv)


def _start_search(argv: Sequence[str]) -> None:
    parser = ArgumentParser(
        description="Search for networks and training recipes.",
        epilog=OTHER_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/nars/")
    parser.add_argument("--resume", action="store_true", help="resume the search in the output folder")
    parser.add_argument(
        "--accept", action="store_true", help="resume although the evaluator's source code has changed"
    )
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
        "overrides", nargs="*", metavar="KEY VALUE", help="settings to change, such as evaluations 50"
    )
    args = parser.parse_intermixed_args(argv)
    # --executor and --address set the settings of the same names
    overrides = list(args.overrides)
    for key in ("executor", "address"):
        if getattr(args, key):
            overrides += [key, getattr(args, key)]
    config = load_search_config(args.config, overrides)
    if config.evaluator is None:
        raise UsageError(f"{args.config}: evaluator: is missing; only ask and tell do without one")
    folder = Path(args.output or config.output)
    result = search(
        config.space,
        config.evaluator,
        folder,
        config.settings,
        resume=args.resume,
        accept_changes=args.accept,
        on_progress=ProgressTable(),
    )
    _show_result(result, folder)


def _show_result(result: SearchResult, folder: Path) -> None:
    """Print the recommendations, and write the report."""
    for recommendation in result.recommendations:
        files = recommendation.files
        columns = "".join(f", {name} {value:,.6g}" for name, value in recommendation.columns.items())
        prediction = format_prediction(recommendation.predicted, recommendation.predicted_std)
        value = f"predicted {prediction}"
        if recommendation.measured is not None:
            value = f"measured {recommendation.measured:.5g}, {value}"
        print(f"{files.name}: {value}{columns}")
        print(f"  {files.config or files.provenance}")
    save_analysis(result)
    print(f"report: {write_report(folder)}")


def _show_status(argv: Sequence[str]) -> None:
    parser = _build_parser("status", "Show the progress of a search.")
    print(describe_search(parser.parse_args(argv).folder))


def _rewrite_report(argv: Sequence[str]) -> None:
    parser = _build_parser("report", "Rewrite the HTML report of a search.")
    parser.add_argument("--csv", metavar="FILE", help="also write a table of all trials to this file")
    args = parser.parse_args(argv)
    print(write_report(args.folder))
    if args.csv:
        print(load(args.folder).write_csv(args.csv))


def _watch(argv: Sequence[str]) -> None:
    parser = _build_parser("watch", "Rewrite the HTML report of a running search until it finishes.")
    parser.add_argument(
        "--seconds", type=positive_int, default=10, metavar="N", help="time between two versions"
    )
    args = parser.parse_args(argv)
    try:
        watch_search(args.folder, args.seconds)
    except KeyboardInterrupt:
        print("stopped watching; the search goes on")


def _ask(argv: Sequence[str]) -> None:
    parser = _build_csv_parser("ask", "Write candidates that you evaluate yourself to a CSV file.")
    parser.add_argument("--count", type=positive_int, default=1, metavar="N", help="number (default: 1)")
    parser.add_argument(
        "--reclaim", action="store_true", help="hand out again all candidates whose values were never told"
    )
    args = parser.parse_intermixed_args(argv)
    opened = _open_search(args)
    if args.reclaim:
        print(f"candidates to hand out again: {opened.reclaim()}")
    count = opened.ask_csv(args.csv, args.count)
    if count:
        print(f"{args.csv}: candidates: {count}. Fill in the values, then: {program_name()} tell")
        return
    running = sum(trial.status == RUNNING for trial in opened.trials)
    if running:
        print(f"{args.csv}: no candidates; values that are not known yet: {running}")
        return
    print("the search is over: all evaluations are used, or no candidate is left")
    _show_result(opened.result(), opened.folder)


def _tell(argv: Sequence[str]) -> None:
    parser = _build_csv_parser("tell", "Record the values in a file that _ask has written.")
    args = parser.parse_intermixed_args(argv)
    opened = _open_search(args)
    print(f"{opened.folder}: new values: {opened.tell_csv(args.csv)}")


def _build_csv_parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"{program_name()} {command}", description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/nars/")
    parser.add_argument("--output", metavar="DIR", help="output folder (default: the config's)")
    parser.add_argument("--csv", required=True, metavar="FILE", help="file of candidates and values")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings to change")
    return parser


def _open_search(args: argparse.Namespace) -> Search:
    config = load_search_config(args.config, args.overrides)
    return Search(config.space, args.output or config.output, config.settings)


def _build_parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"{program_name()} {command}", description=description)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="output folder of a search")
    return parser


COMMANDS = {"status": _show_status, "report": _rewrite_report, "watch": _watch, "ask": _ask, "tell": _tell}
