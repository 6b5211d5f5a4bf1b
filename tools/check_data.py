#!/usr/bin/env python3
"""Check a dataset before training: the same as `fbnetv3 check-data`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("check-data")
