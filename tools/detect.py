#!/usr/bin/env python3
"""Detect objects in images and videos: the same as `fbnetv3 detect`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("detect")
