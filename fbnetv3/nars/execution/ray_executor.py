"""Executor on a Ray cluster. The only module that imports Ray."""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fbnetv3.errors import MissingPackageError, UsageError
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TimeLimit, TrialAttempt
from fbnetv3.nars.execution.evaluator_errors import TRACEBACKS_FILE, log_traceback
from fbnetv3.nars.execution.executors import ExecutorOptions, import_path
from fbnetv3.nars.execution.pickling import pickle_with_file_names
from fbnetv3.utils.text import one_line

try:
    import ray
except ImportError:
    raise MissingPackageError("executor ray: Ray is not installed; pip install 'ray>=2'") from None

# Names of the cluster's resources for the options of a task
_RESOURCE_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
_CONNECT_TIMEOUT = 10.0  # seconds


class RayExecutor:
    """Evaluates as Ray tasks.

    A task whose worker or node dies is reported as a failed attempt; the search submits it again, as with local
    workers. Every node must be able to reach the folders of the trials, and modules under the same paths.
    """

    def __init__(self, context: SearchContext, options: ExecutorOptions) -> None:
        self.slots = options.workers
        self._log = options.logs / TRACEBACKS_FILE
        self._time_limit = TimeLimit(options.time_limit)
        # Attempt and start time by Ray's object reference
        self._running: dict[Any, tuple[TrialAttempt, float]] = {}
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(options.address, options.workers)
        try:
            task_options: dict[str, Any] = {"num_cpus": 1, **options.resources, "max_retries": 0}
            self._task = ray.remote(**task_options)(_build_task(import_path()))
        except (TypeError, ValueError) as error:
            self.close()
            raise UsageError(f"resources {dict(options.resources)}: {one_line(error)}") from None
        self._fit_slots(options.resources)
        try:
            self._context = ray.put(pickle_with_file_names(context))
        except Exception as error:  # pickling runs the user's code
            self.close()
            raise UsageError(f"the evaluator cannot be sent to Ray workers ({one_line(error)})") from None

    def _fit_slots(self, resources: Mapping[str, float]) -> None:
        """Submit no more tasks than fit on the cluster: those in its queue would use up their time limit."""
        available = ray.cluster_resources()
        needed = {"CPU": 1.0}
        needed |= {
            _RESOURCE_NAMES[name]: count for name, count in resources.items() if name in _RESOURCE_NAMES
        }
        for name, count in needed.items():
            total = available.get(name, 0)
            if count > total:
                self.close()
                raise UsageError(
                    f"resources: a trial needs {count:g} {name}, but the cluster has {total:g}"
                )
            if count:
                self.slots = min(self.slots, int(total // count))

    def submit(self, attempt: TrialAttempt) -> None:
        """Start an attempt."""
        reference = self._task.remote(self._context, pickle.dumps(attempt))
        self._running[reference] = (attempt, time.monotonic())

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of attempts that have ended; wait up to `timeout` seconds for the first."""
        if not self._running:
            return []
        start_times = [start_time for _, start_time in self._running.values()]
        ready, _ = ray.wait(list(self._running), timeout=self._time_limit.cap(timeout, start_times))
        return [self._receive_outcome(reference) for reference in ready] + self._cancel_overdue_tasks()

    def _receive_outcome(self, reference: Any) -> Outcome:
        attempt, start_time = self._running.pop(reference)
        try:
            return log_traceback(ray.get(reference), attempt.trial, self._log)
        except ray.exceptions.RayError as error:
            # A task that raises an error leaves its worker alive. Otherwise, process and node ids follow the first
            # sentence.
            message = f"the Ray worker died ({one_line(error).partition('. ')[0]})"
            if isinstance(error, ray.exceptions.RayTaskError):
                message = f"the Ray task failed ({one_line(error.cause)})"
            return Outcome(attempt.number, None, message, time.monotonic() - start_time)

    def _cancel_overdue_tasks(self) -> list[Outcome]:
        outcomes = []
        for reference, (attempt, start_time) in list(self._running.items()):
            outcome = self._time_limit.outcome_if_overdue(attempt, start_time)
            if outcome:
                ray.cancel(reference, force=True)
                del self._running[reference]
                outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Stop all running attempts."""
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        if self._owns_ray:
            ray.shutdown()


def _build_task(folders: Sequence[str]) -> Callable[[bytes, bytes], Outcome]:
    """Build the function that evaluates a pickled attempt, given the pickled context.

    It makes the modules in `folders` importable before it loads the two. As a nested function, it is itself sent by
    value, so this package is imported from these folders too.
    """

    def evaluate(context: bytes, attempt: bytes) -> Outcome:
        import pickle
        import sys

        sys.path.extend(folder for folder in folders if folder not in sys.path)
        from fbnetv3.nars.execution.attempt_evaluation import evaluate_in_worker

        return evaluate_in_worker(pickle.loads(context), pickle.loads(attempt))

    return evaluate


def _connect(address: str | None, workers: int) -> None:
    """Connect to a cluster, or start one on this machine with a CPU per worker."""
    arguments: dict[str, Any] = {"address": "local", "num_cpus": workers}
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            arguments = {"address": address}
            # Where nothing listens, Ray itself would retry for minutes
            host, _, port = address.rpartition("://")[2].rpartition(":")
            if port.isdigit():
                socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except Exception as error:  # many types
        where = f"at {address}" if address else "on this machine"
        raise UsageError(f"address: no Ray cluster {where} ({one_line(error)})") from None
    finally:
        # Restore the tool's handler, which `ray.init` replaces
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)
