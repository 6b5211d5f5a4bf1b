"""Executors evaluate candidates in parallel: in local processes, in the calling process, or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
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
    """Options of an executor; each uses those that apply to it.

    Attributes:
        workers: evaluations to run at a time.
        time_limit: seconds after which an evaluation is killed, including the start of its process; None for no limit.
        logs: folder for the output of local workers.
        address: address of a Ray cluster; None starts one on this machine.
        resources: Ray resources per evaluation, such as {"num_cpus": 4, "num_gpus": 1}.
    """

    workers: int = 1
    time_limit: float | None = None
    logs: Path = Path("logs")
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol):
    """Evaluates attempts in parallel.

    Attributes:
        slots: maximum number of attempts that run at a time.
    """

    slots: int

    def submit(self, attempt: TrialAttempt) -> None:
        """Start an attempt; the caller never has more than `slots` running."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of attempts that have ended; wait up to `timeout` seconds for the first."""

    def close(self) -> None:
        """Stop all running attempts and every process that they started."""


@contextlib.contextmanager
def open_executor(name: str, context: SearchContext, options: ExecutorOptions) -> Iterator[Executor]:
    """Start an executor and close it at the end of the block.

    Args:
        name: registered name: "local", "serial", "ray" or your own.
        context: space and evaluator.
        options: workers, time limit and so on.

    Raises:
        UserError: unknown name, or options that the executor does not support.
    """
    executor: Executor = EXECUTORS.get(name)(context, options)
    try:
        yield executor
    finally:
        executor.close()
