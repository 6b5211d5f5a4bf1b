#!/usr/bin/env python3
"""Export a classifier or a detector: the same as `fbnetv3 export`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("export")
