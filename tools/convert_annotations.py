#!/usr/bin/env python3
"""Convert annotations of boxes: the same as `fbnetv3 convert-annotations`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("convert-annotations")
