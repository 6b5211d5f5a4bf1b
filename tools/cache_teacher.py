#!/usr/bin/env python3
"""Cache a teacher's logits for every training image: `cache_teacher.py --config FILE [KEY VALUE ...]`."""

from collections.abc import Sequence

from fbnetv3.config import load_config
from fbnetv3.training import cache_teacher_logits
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        description="Write a teacher's logits to DISTILL.CACHE. An incomplete cache is completed."
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="training config of the student")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config overrides, the same as for training"
    )
    args = parser.parse_intermixed_args(argv)
    files = cache_teacher_logits(load_config(args.config, args.overrides))
    print(f"teacher logits: {files.folder}")


if __name__ == "__main__":
    run_tool(main, after_interrupt="run the same command again to resume")
