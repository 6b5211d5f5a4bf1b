#!/usr/bin/env python3
"""Classify images: the same as `fbnetv3 predict`; see fbnetv3/commands."""

from fbnetv3.commands.cli import run

if __name__ == "__main__":
    run("predict")
