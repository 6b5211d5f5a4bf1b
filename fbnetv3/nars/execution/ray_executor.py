"""Candidates evaluated by the workers of a Ray cluster. The only module that imports Ray."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import ray

from fbnetv3.errors import UsageError
from fbnetv3.nars.evaluators.evaluator_registry import Evaluate
from fbnetv3.nars.execution.jobs import Job, Outcome
from fbnetv3.nars.execution.worker import evaluate
from fbnetv3.nars.space.search_space import Space


class RayExecutor:
    """Evaluates as Ray tasks.

    A task whose worker or node dies is reported as failed; the search submits it again, as it does on one machine.
    Folders of trials have to lie where every node reaches them.

    Args:
        space: of the candidates.
        evaluator: goes to the workers through Ray's object store.
        workers: most tasks at a time.
        time_limit: seconds after which a task is ended, or None.
        address: of the cluster, such as "auto" or "ray://head:10001"; None starts one on this machine.
        resources: options of a task, such as {"num_cpus": 4, "num_gpus": 1}; default: one CPU.

    Raises:
        UsageError: the cluster does not answer, or knows no such resources.
    """

    def __init__(
        self,
        space: Space,
        evaluator: Evaluate,
        workers: int,
        time_limit: float | None,
        address: str | None,
        resources: dict[str, float] | None,
    ) -> None:
        self.slots, self.time_limit = workers, time_limit
        self._running: dict[Any, tuple[Job, float]] = {}
        self._ours = not ray.is_initialized()
        if self._ours:
            if address is not None:
                _check_address(address)
            cpus: dict[str, Any] = {"num_cpus": workers} if address is None else {}
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **cpus,
                )
            except Exception as error:
                where = f"at {address}" if address else "on this machine"
                raise UsageError(f"address: no Ray cluster {where} ({_first_line(error)})") from None
        try:
            options: dict[str, Any] = {"num_cpus": 1, **(resources or {}), "max_retries": 0}
            self._task = ray.remote(**options)(evaluate)
        except (TypeError, ValueError) as error:
            self.close()
            raise UsageError(f"resources {resources}: {_first_line(error)}") from None
        self._check_resources({"CPU": 1, **_as_ray_counts(resources or {})})
        try:
            self._setup = ray.put((space, evaluator))
        except Exception as error:
            self.close()
            raise UsageError(f"the evaluator cannot be sent to Ray's workers ({_first_line(error)})") from None

    def _check_resources(self, needed: dict[str, float]) -> None:
        """Run no more tasks at a time than the cluster has room for: the others' time would pass in its queue."""
        there = ray.cluster_resources()
        for name, count in needed.items():
            if count > there.get(name, 0):
                self.close()
                raise UsageError(
                    f"resources: a trial needs {count:g} {name}, the cluster has {there.get(name, 0):g} in all"
                )
            if count:
                self.slots = min(self.slots, int(there[name] // count))

    def submit(self, job: Job) -> None:
        self._running[self._task.remote(self._setup, job)] = job, time.monotonic()

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._running:
            return []
        until = time.monotonic() + seconds
        if self.time_limit is not None:
            until = min(until, min(began for _, began in self._running.values()) + self.time_limit)
        ready, _ = ray.wait(list(self._running), timeout=max(0.0, until - time.monotonic()))
        outcomes = []
        for reference in ready:
            job, began = self._running.pop(reference)
            try:
                outcomes.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                gone = time.monotonic() - began
                outcomes.append(Outcome(job.number, None, f"its Ray worker is lost ({_first_line(error)})", gone))
        return outcomes + self._end_overdue()

    def _end_overdue(self) -> list[Outcome]:
        outcomes = []
        for reference, (job, began) in list(self._running.items()):
            gone = time.monotonic() - began
            if self.time_limit is not None and gone >= self.time_limit:
                ray.cancel(reference, force=True)
                del self._running[reference]
                error = f"ended after {gone:.0f} s: the time limit is {self.time_limit:g} s"
                outcomes.append(Outcome(job.number, None, error, gone))
        return outcomes

    def close(self) -> None:
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        if self._ours:
            ray.shutdown()


def _as_ray_counts(resources: dict[str, float]) -> dict[str, float]:
    """Options of a task as the cluster counts them: num_gpus is its GPU."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return {names[name]: count for name, count in resources.items() if name in names}


def _check_address(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", and whatever Ray may know
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(f"address: no Ray cluster at {address} ({error.strerror or error})") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
