"""Executors evaluate candidates in parallel: in local processes, in the calling process, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TrialAttempt
from fbnetv3.registry import Registry

EXECUTORS = Registry("executor")
"""Each entry is called with a `SearchContext` and `ExecutorOptions` and returns an `Executor`."""
EXECUTORS.add("local", "fbnetv3.nars.execution.local_executor:LocalExecutor", __file__)
EXECUTORS.add("serial", "fbnetv3.nars.execution.local_executor:SerialExecutor", __file__)
EXECUTORS.add("ray", "fbnetv3.nars.execution.ray_executor:RayExecutor", __file__)


@dataclass(frozen=True)
class ExecutorOptions:
    """Options of an executor, which ignores those that do not apply to it."""

    workers: int = 1  # number of evaluations to run at a time
    time_limit: float | None = None  # seconds after which an evaluation is killed, startup included
    logs: Path = Path("logs")  # folder for the output of local workers, and for tracebacks
    address: str | None = None  # address of a Ray cluster; None starts one on this machine
    resources: Mapping[str, float] = field(
        default_factory=dict
    )  # per evaluation: Ray's; of local workers, num_gpus


class Executor(Protocol):
    """Evaluates attempts in parallel."""

    slots: int  # maximum number of attempts that run at a time

    def submit(self, attempt: TrialAttempt) -> None:
        """Start an attempt; the caller never has more than `slots` running."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of attempts that have ended; wait up to `timeout` seconds for the first."""

    def close(self) -> None:
        """Stop all running attempts and every process that they started."""


def open_executor(
    name: str, context: SearchContext, options: ExecutorOptions
) -> contextlib.closing[Executor]:
    """Start the executor registered under `name`; it is closed at the end of a `with` block."""
    return contextlib.closing(EXECUTORS.get(name)(context, options))


def import_path() -> list[str]:
    """Return the folders from which this process imports modules, so that workers can import from them too."""
    return [path or os.getcwd() for path in sys.path]
