#!/usr/bin/env python3
"""Suggest a learning rate by a range test: `find_lr.py --config FILE [KEY VALUE ...]`."""

from collections.abc import Sequence
from pathlib import Path

from fbnetv3.config import load_config
from fbnetv3.training import find_lr
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        description="Train for some steps with a growing learning rate, draw the loss, and suggest SOLVER.LR. "
        "The weights are not kept."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="training config")
    parser.add_argument("--output", default="lr_range.png", metavar="FILE", help="figure to write (PNG)")
    parser.add_argument(
        "--lowest", type=float, default=1e-6, metavar="LR", help="SOLVER.LR of the first step"
    )
    parser.add_argument(
        "--highest", type=float, default=10.0, metavar="LR", help="SOLVER.LR of the last step"
    )
    parser.add_argument("--steps", type=positive_int, default=100, metavar="N", help="number of steps")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config overrides, the same as for training"
    )
    args = parser.parse_intermixed_args(argv)
    cfg = load_config(args.config, args.overrides)
    result = find_lr(cfg, lowest=args.lowest, highest=args.highest, steps=args.steps)
    result.plot(Path(args.output))
    print(f"SOLVER.LR {result.suggestion:.2g} (a tenth of the value with the lowest loss): {args.output}")


if __name__ == "__main__":
    run_tool(main)
