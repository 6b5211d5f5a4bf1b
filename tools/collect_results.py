#!/usr/bin/env python3
"""Print a table of all training runs in a folder, and write it to results.csv there: `collect_results.py output`."""

from collections.abc import Sequence

from tabulate import tabulate

from fbnetv3.errors import DataError
from fbnetv3.training.tracking.results_table import collect_results, update_results_table
from fbnetv3.utils.command_line import ArgumentParser, run_tool

SHOWN = (
    "run",
    "arch",
    "data",
    "top1",
    "ema_top1",
    "map",
    "loss",
    "epoch",
    "epochs",
    "macs",
    "lr",
    "batch_size",
    "seconds",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Collect the results of the training runs in a folder.")
    parser.add_argument("folder", help="folder that contains the runs' folders (OUTPUT_DIR)")
    args = parser.parse_args(argv)
    results = collect_results(args.folder)
    if not results:
        raise DataError(
            f"{args.folder}: has no runs with results; name the folder that contains their OUTPUT_DIRs"
        )
    print(tabulate([[result[name] for name in SHOWN] for result in results], headers=SHOWN))
    print(f"{'table:':12} {update_results_table(args.folder)}")


if __name__ == "__main__":
    run_tool(main)
