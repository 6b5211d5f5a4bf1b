#!/usr/bin/env python3
"""Print the cost of networks and detectors: the same as `fbnetv3 analyze`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("analyze")
