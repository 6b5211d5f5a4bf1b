#!/usr/bin/env python3
"""Draw classes and validation images of an image folder (Sec. 4): `make_split.py imagenet/train imagenet200.json`."""

from argparse import ArgumentTypeError
from collections.abc import Sequence

from fbnetv3.data.classes.class_subset import (
    SEARCH_CLASSES,
    SEARCH_NUM_VAL,
    draw_class_subset,
    save_class_subset,
)
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        description="Draw classes, hold out images for validation, and list both in a file for DATA.NAME imagelist."
    )
    parser.add_argument("root", help="folder with one subfolder per class")
    parser.add_argument("output", help="the subset file to write (JSON)")
    parser.add_argument(
        "--classes",
        type=_number_or_all,
        default=SEARCH_CLASSES,
        metavar="N",
        help='number of classes to draw, or "all"',
    )
    parser.add_argument(
        "--held-out",
        type=_number_or_percentage,
        default=SEARCH_NUM_VAL,
        metavar="N",
        help='number of validation images to hold out, over all classes; or a percentage of each class, such as "20%%"',
    )
    parser.add_argument(
        "--train",
        type=positive_int,
        metavar="N",
        help="number of remaining images to use for training (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the draw")
    args = parser.parse_args(argv)

    subset = draw_class_subset(args.root, args.classes, args.held_out, args.seed, args.train)
    save_class_subset(subset, args.output)
    counts = f"{len(subset.train)} training, {len(subset.val)} validation images"
    print(f"{args.output}: {len(subset.classes)} classes, {counts}")


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else positive_int(text)


def _number_or_percentage(text: str) -> int | float:
    if not text.endswith("%"):
        return positive_int(text)
    percentage = positive_int(text.removesuffix("%"))
    if percentage > 99:
        raise ArgumentTypeError(f"{text} must be at most 99%")
    return percentage / 100


if __name__ == "__main__":
    run_tool(main)
