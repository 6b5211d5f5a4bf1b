#!/usr/bin/env python3
"""Measure the latency of networks: the same as `fbnetv3 measure`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("measure")
