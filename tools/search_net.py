#!/usr/bin/env python3
"""Search for networks and training recipes: the same as `fbnetv3 search`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("search")
