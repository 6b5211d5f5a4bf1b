#!/usr/bin/env python3
"""Let a teacher answer every training image once: `cache_teacher.py --config FILE [KEY VALUE ...]`."""

from fbnetv3.config import load_config
from fbnetv3.training import cache_answers
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Write a teacher's answers to DISTILL.CACHE, or go on with a part of them.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the training's config")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="the training's config keys")
    args = parser.parse_intermixed_args(argv)
    files = cache_answers(load_config(args.config, args.overrides))
    print(f"answers: {files.folder}")


if __name__ == "__main__":
    run_tool(main, after_interrupt="the same command goes on where this one stopped")
