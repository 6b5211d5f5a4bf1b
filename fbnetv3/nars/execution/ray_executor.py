"""Executor on a Ray cluster. The only module that imports Ray."""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fbnetv3.errors import MissingPackageError, UsageError
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TimeLimit, TrialAttempt
from fbnetv3.nars.execution.evaluator_errors import TRACEBACKS_FILE, log_traceback
from fbnetv3.nars.execution.executors import ExecutorOptions, import_path
from fbnetv3.nars.execution.gpu_assignment import count_sharing, gpus_per_trial
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

    If the evaluator names its `trial_device`, tasks reserve a GPU, or a share of one, unless the resource `num_gpus`
    says how many. Ray starts a new process for each task with a GPU, so that no task inherits a broken one.
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
            self._gpu_share = gpus_per_trial(
                getattr(context.evaluator, "trial_device", None),
                options.resources.get("num_gpus"),
                options.workers,
                int(ray.cluster_resources().get("GPU", 0)),
            )
            resources: dict[str, Any] = {"num_cpus": 1, **options.resources, "max_retries": 0}
            if self._gpu_share is not None:
                resources["num_gpus"] = self._gpu_share
            self._task = ray.remote(**resources)(_build_task(import_path()))
        except UsageError:
            self.close()
            raise
        except (TypeError, ValueError) as error:
            self.close()
            raise UsageError(f"resources {dict(options.resources)}: {one_line(error)}") from None
        self._fit_slots(resources)
        try:
            self._context = ray.put(pickle_with_file_names(context))
        except Exception as error:  # pickling runs the user's code
            self.close()
            raise UsageError(f"the evaluator cannot be sent to Ray workers ({one_line(error)})") from None

    def _fit_slots(self, resources: Mapping[str, float]) -> None:
        """Submit no more tasks than fit on the cluster: those in its queue would use up their time limit."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = {
            _RESOURCE_NAMES[name]: count for name, count in resources.items() if name in _RESOURCE_NAMES
        }
        slots = count_slots(nodes, needed)
        if slots == 0:
            self.close()
            trial = " and ".join(f"{count:g} {name}" for name, count in needed.items())
            total = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
            raise UsageError(
                f"resources: a trial needs {trial}, but no machine of the cluster has as much; it has {total} in all"
            )
        self.slots = min(self.slots, slots) if slots else self.slots

    def submit(self, attempt: TrialAttempt) -> None:
        """Start an attempt."""
        task, gpu_share = self._task, self._gpu_share
        if attempt.alone and gpu_share and gpu_share < 1:
            task, gpu_share = task.options(num_gpus=1), 1.0
        reference = task.remote(self._context, pickle.dumps(attempt), gpu_share)
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


def count_slots(nodes: Iterable[Mapping[str, float]], needed: Mapping[str, float]) -> int | None:
    """Return how many trials fit on a cluster at a time; None if they need nothing.

    Args:
        nodes: resources of each machine by name, such as "GPU".
        needed: those of a trial, all on one machine. A share of a GPU is a share of a single one.
    """
    needed = {name: count for name, count in needed.items() if count}
    if not needed:
        return None
    return sum(
        min(
            int(node.get(name, 0)) * count_sharing(count)
            if name == "GPU" and count < 1
            else int(node.get(name, 0) // count)
            for name, count in needed.items()
        )
        for node in nodes
    )


def _build_task(folders: Sequence[str]) -> Callable[[bytes, bytes, float | None], Outcome]:
    """Build the function that evaluates a pickled attempt, given the pickled context and the number of its GPUs.

    It makes the modules in `folders` importable before it loads the two. As a nested function, it is itself sent by
    value, so this package is imported from these folders too.
    """

    def evaluate(context: bytes, attempt: bytes, gpu_share: float | None) -> Outcome:
        import contextlib
        import pickle
        import sys

        sys.path.extend(folder for folder in folders if folder not in sys.path)
        from fbnetv3.nars.execution.attempt_evaluation import evaluate_in_worker
        from fbnetv3.nars.execution.gpu_assignment import no_visible_gpus

        with no_visible_gpus() if gpu_share == 0 else contextlib.nullcontext():
            return evaluate_in_worker(pickle.loads(context), pickle.loads(attempt), gpu_share)

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
