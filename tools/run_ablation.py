#!/usr/bin/env python3
"""Train a grid of networks and recipes, with a table and a figure: `run_ablation.py --config FILE [KEY VALUE ...]`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fbnetv3.experiments.ablation import (
    CellResult,
    load_ablation,
    results_table,
    run_ablation,
    save_results,
)
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.utils.command_line import ArgumentParser, run_tool
from fbnetv3.utils.files import expand_path


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Run an ablation, or resume an interrupted one.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/ablations/")
    parser.add_argument("--output", metavar="DIR", help="output folder (default: the one in the file)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config keys to change in every run"
    )
    args = parser.parse_intermixed_args(argv)

    ablation = load_ablation(args.config)
    if args.output:
        ablation = replace(ablation, output=expand_path(args.output))
    keep_freed_memory()
    results: list[CellResult] = []
    files: list[Path] = []
    for result in run_ablation(ablation, args.overrides):
        results.append(result)
        files = save_results(ablation, results)  # after each cell, to show progress
    print(f"\n{results_table(ablation, results)}\n")
    print(*files, sep="\n")


if __name__ == "__main__":
    run_tool(main, after_interrupt="run the same command again to resume")
