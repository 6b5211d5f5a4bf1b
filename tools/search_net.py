#!/usr/bin/env python3
"""Search for networks and their recipes: `search_net.py --config FILE [--resume] [KEY VALUE ...]`; `status FOLDER` and
`report FOLDER` show a search that runs or has run."""

import sys
from pathlib import Path

from fbnetv3.nars.algorithm.nars_search import run_search
from fbnetv3.nars.algorithm.search_settings import load_search_config
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.progress_table import LiveTable, describe
from fbnetv3.nars.report.search_analysis import save_analysis
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("status", "report"):
        return look(*argv)
    parser = ArgumentParser(description="Search a space, or look at a search: search_net.py status|report FOLDER.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/nars/")
    parser.add_argument("--resume", action="store_true", help="go on with the search in the output folder")
    parser.add_argument("--output", metavar="FOLDER", help="instead of the file's")
    parser.add_argument("--executor", help="local, serial or ray")
    parser.add_argument("--address", help="of a Ray cluster; without it, Ray starts on this machine")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings to change, such as rounds 3")
    args = parser.parse_intermixed_args(argv)
    flags = [part for key in ("executor", "address") if (value := getattr(args, key)) for part in (key, value)]
    config = load_search_config(args.config, [*args.overrides, *flags])
    folder = Path(args.output or config.output)
    result = run_search(config.space, config.evaluator, folder, config.settings, resume=args.resume, watch=LiveTable())
    for found in result.found:
        columns = ", ".join(f"{name} {value:,.6g}" for name, value in found.columns.items())
        print(f"{found.emitted.name}: predicted {found.predicted:.4g}; {columns}")
        print(f"  {found.emitted.config or found.emitted.provenance}")
    save_analysis(result)
    print(f"report: {write_report(folder)}")


def look(what, *rest):
    parser = ArgumentParser(prog=f"search_net.py {what}")
    parser.add_argument("folder", type=Path, help="output folder of a search")
    folder = parser.parse_args(rest).folder
    print(describe(folder) if what == "status" else write_report(folder))


if __name__ == "__main__":
    run_tool(main, after_interrupt="add --resume to go on; nothing that has ended is lost", sigterm=True)
