"""Descriptions of a run: the environment in which it is started, and a one-line summary."""

from __future__ import annotations

import functools
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import fbnetv3
from fbnetv3.training.processes.distributed import ProcessGroup

logger = logging.getLogger(__name__)


def log_summary(
    name: str, model: nn.Module, dataset: str, details: list[str], device: torch.device, group: ProcessGroup
) -> None:
    """Log the network, data, length and device of a run; `details` are texts such as "24 training images"."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # On a CPU, the number of threads determines the speed
    threads = torch.get_num_threads()
    cpu = f"{threads} CPU {'thread' if threads == 1 else 'threads'}"
    where = cpu if device.type == "cpu" else str(device)
    if group.size > 1:
        where = f"{group.size} processes, {where}"
    logger.info("%s (%.2f M parameters) on %s: %s", name, parameters, dataset, ", ".join([*details, where]))


def package_versions() -> dict[str, str]:
    """Return the versions of this package, and of those on which its results depend."""
    return {
        "fbnetv3": fbnetv3.__version__,
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, command line, and the state of the git checkout (None for an installed package)."""
    return {
        "command": sys.argv,
        **package_versions(),
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@functools.cache  # the state in which this process has imported the package
def _git_state() -> dict[str, Any] | None:
    folder = Path(fbnetv3.__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # git would search the parent folders
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "changed": git("status", "--porcelain").splitlines(),
        }
    except (OSError, subprocess.SubprocessError):  # git may be missing
        return None
