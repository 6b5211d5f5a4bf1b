#!/usr/bin/env python3
"""Train or evaluate a network: the same as `fbnetv3 train`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("train")
