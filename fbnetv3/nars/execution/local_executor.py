"""Executors on this machine: worker processes, or the calling process itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from fbnetv3.errors import UsageError, UserError
from fbnetv3.nars.execution.attempt_evaluation import evaluate_attempt
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TimeLimit, TrialAttempt
from fbnetv3.nars.execution.evaluator_errors import TRACEBACKS_FILE, log_traceback
from fbnetv3.nars.execution.executors import ExecutorOptions, import_path
from fbnetv3.nars.execution.gpu_assignment import (
    VISIBLE_GPUS,
    assign_gpus,
    gpus_per_trial,
    is_assigned,
    visible_gpus,
)
from fbnetv3.nars.execution.gpu_slots import GpuSlots
from fbnetv3.nars.execution.pickling import pickle_with_file_names
from fbnetv3.utils.files import build_output_error, make_folder

_GRACE_PERIOD = 20.0  # seconds for an interrupted evaluation to save its state
_EXIT_SECONDS = 1.0  # time for a process that has closed its pipe to end
_LOG_TAIL = 300  # bytes read from the end of a dead worker's log


class SerialExecutor:
    """Evaluates in the calling process, one attempt after another: for fast evaluators and for debuggers."""

    slots = 1

    def __init__(self, context: SearchContext, options: ExecutorOptions) -> None:
        if options.time_limit is not None:
            raise UsageError(
                "time_limit: the serial executor cannot kill an evaluation; use the local executor"
            )
        self._context = context
        self._log = options.logs / TRACEBACKS_FILE
        self._attempts: deque[TrialAttempt] = deque()
        self._gpu_error = ""  # after which this process cannot use its GPU

    def submit(self, attempt: TrialAttempt) -> None:
        """Queue an attempt for `wait`."""
        self._attempts.append(attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        """Evaluate the next attempt."""
        if not self._attempts:
            return []
        if self._gpu_error:
            raise UserError(
                f"executor serial: this process cannot use its GPU anymore ({self._gpu_error}): resume the search, "
                "or use the executor local, which starts a new process after such errors"
            )
        attempt = self._attempts.popleft()
        outcome = log_traceback(evaluate_attempt(self._context, attempt), attempt.trial, self._log)
        if outcome.ends_worker:
            self._gpu_error = outcome.error or f"after trial {attempt.trial}"
        return [outcome]

    def close(self) -> None:
        """Drop all queued attempts."""
        self._attempts.clear()


class LocalExecutor:
    """Evaluates in worker processes of this machine, each with a log file for what it prints.

    If the evaluator names its `trial_device`, or with the resource `num_gpus`, each worker sees only its own GPUs, or
    the one that it shares, and uses no more than its share of the memory. An attempt that ran out of memory gets a GPU
    of its own; an error after which a process cannot use its GPU ends the worker. The evaluator is sent by cloudpickle,
    so functions defined in a script or notebook work.
    """

    def __init__(self, context: SearchContext, options: ExecutorOptions) -> None:
        self.slots = options.workers
        self.logs = options.logs
        self._time_limit = TimeLimit(options.time_limit)
        self._workers: dict[int, _Worker] = {}
        self._queue: list[TrialAttempt] = []  # attempts that wait for a slot
        self._gpu_share, self._gpus = _assign_gpus(context, options)
        # Without GPUs of their own, workers may all use the same ones
        self._slots = GpuSlots(self._gpus or [""] * self.slots)
        try:
            self._context = pickle_with_file_names(context)
        except Exception as error:  # pickling runs the user's code
            raise UsageError(
                f"the evaluator cannot be sent to worker processes ({error}): create open files, locks, and other "
                "unpicklable objects inside the function, or use the serial executor"
            ) from None

    def submit(self, attempt: TrialAttempt) -> None:
        """Start an attempt, or queue it if it needs a GPU of its own, or another attempt waits for one."""
        self._queue.append(attempt)
        self._start_queued()

    def _start_queued(self) -> None:
        queue, self._queue = self._queue, []
        for attempt in queue:
            slot = self._slots.take(attempt.alone)
            if slot is None:
                self._queue.append(attempt)
            else:
                self._start(attempt, slot)

    def _start(self, attempt: TrialAttempt, slot: int) -> None:
        gpu_share = self._gpu_share
        if attempt.alone:
            # Idle workers hold memory, too
            for neighbor in self._slots.neighbors(slot):
                self._stop_worker(neighbor)
            gpu_share = gpu_share and max(1.0, gpu_share)
        if slot not in self._workers:
            log = make_folder(self.logs) / f"worker_{slot}.txt"
            self._workers[slot] = _Worker(self._context, log, self._environment(slot), gpu_share)
        self._workers[slot].start_attempt(attempt)

    def _stop_worker(self, slot: int) -> None:
        if slot in self._workers:
            self._workers.pop(slot).kill()

    def _environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables of a worker, in addition to those of this process."""
        num_threads = max(1, (os.cpu_count() or 1) // self.slots)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(num_threads))}
        if self._gpus:
            environment[VISIBLE_GPUS] = self._gpus[slot]
        return environment

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes of attempts that have ended; wait up to `timeout` seconds for the first."""
        busy = {worker.pipe: slot for slot, worker in self._workers.items() if worker.attempt is not None}
        if not busy:
            return []
        start_times = [self._workers[slot].start_time for slot in busy.values()]
        ready = wait(list(busy), self._time_limit.cap(timeout, start_times))
        slots = [busy[pipe] for pipe in ready if isinstance(pipe, Connection)]
        # A child process of a dead worker may keep the pipe open, so look at the processes too
        slots += [slot for slot in busy.values() if self._workers[slot].process.poll() is not None]
        outcomes = [self._receive_outcome(slot) for slot in dict.fromkeys(slots)]
        outcomes += self._kill_overdue_workers()
        self._start_queued()
        return outcomes

    def _receive_outcome(self, slot: int) -> Outcome:
        """Return the outcome of a worker's attempt; if the worker has died, the next attempt starts a new one."""
        worker = self._workers[slot]
        attempt = worker.attempt
        assert attempt is not None  # only busy workers are waited for
        self._slots.release(slot)
        with contextlib.suppress(EOFError, OSError):
            if worker.pipe.poll():
                outcome: Outcome = pickle.loads(worker.pipe.recv_bytes())
                worker.attempt = None
                # A worker that was alone is not limited to its share
                if outcome.ends_worker or attempt.alone:
                    self._stop_worker(slot)
                return log_traceback(outcome, attempt.trial, worker.log)
        del self._workers[slot]
        # The pipe of a dying process closes a moment before its end
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(_EXIT_SECONDS)
        exit_code = worker.process.returncode
        worker.kill()
        elapsed = time.monotonic() - worker.start_time
        return Outcome(attempt.number, None, worker.describe_failure(exit_code), elapsed)

    def _kill_overdue_workers(self) -> list[Outcome]:
        outcomes = []
        for slot, worker in list(self._workers.items()):
            attempt = worker.attempt
            outcome = self._time_limit.outcome_if_overdue(attempt, worker.start_time) if attempt else None
            if outcome:
                self._stop_worker(slot)
                self._slots.release(slot)
                outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Interrupt the running attempts, wait briefly for them, and kill all workers."""
        self._queue.clear()
        busy = [worker for worker in self._workers.values() if worker.attempt is not None]
        for worker in busy:
            worker.process.terminate()
        deadline = time.monotonic() + _GRACE_PERIOD
        for worker in busy:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()


def _assign_gpus(context: SearchContext, options: ExecutorOptions) -> tuple[float | None, list[str]]:
    """Return the number of GPUs of each worker, None if it is not known, and the GPUs that each one sees."""
    trial_device = getattr(context.evaluator, "trial_device", None)
    num_gpus = options.resources.get("num_gpus")
    gpus = visible_gpus() if num_gpus or (num_gpus is None and is_assigned(trial_device)) else []
    share = gpus_per_trial(trial_device, num_gpus, options.workers, len(gpus))
    return share, [] if share is None else assign_gpus(options.workers, share, gpus)


class _Worker:
    """A worker process, the pipe to it, and its current attempt; `context` is a pickled `SearchContext`."""

    def __init__(
        self, context: bytes, log: Path, environment: Mapping[str, str], gpu_share: float | None
    ) -> None:
        self.log = log
        self.log_start = 0  # size of the log when the attempt started
        self.attempt: TrialAttempt | None = None
        self.start_time = 0.0
        self.pipe, worker_end = Pipe()
        with worker_end:
            self.process = _start_process(worker_end, log, environment, gpu_share)
        with contextlib.suppress(OSError):  # `wait` notices if the process has died already
            self.pipe.send_bytes(context)

    def start_attempt(self, attempt: TrialAttempt) -> None:
        self.attempt = attempt
        self.start_time = time.monotonic()
        with contextlib.suppress(OSError):
            self.log_start = self.log.stat().st_size
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(pickle.dumps(attempt))

    def kill(self) -> None:
        """Kill the process and every process that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()

    def describe_failure(self, exit_code: int | None) -> str:
        """Say why the worker stopped, given the exit code of its process; None if it was still alive."""
        cause = f"exited with code {exit_code}"
        if exit_code is None:
            cause = "closed its connection and was killed"
        elif exit_code < 0:
            hint = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
            cause = f"was killed by {_signal_name(-exit_code)}{hint}"
        # With the last line of its output
        with contextlib.suppress(OSError):
            with self.log.open("rb") as log:
                log.seek(max(self.log_start, self.log.stat().st_size - _LOG_TAIL))
                lines = log.read().decode(errors="replace").strip().splitlines()
            if lines and not lines[-1].startswith("--- trial"):
                cause += f": {lines[-1]}"
        return f"the worker process {cause}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _start_process(
    worker_end: Connection, log: Path, variables: Mapping[str, str], gpu_share: float | None
) -> subprocess.Popen:
    environment = {**os.environ, **variables}
    # The worker gets this process's import path; the evaluator's own subprocesses get the user's PYTHONPATH
    user_path = [environment["PYTHONPATH"]] if "PYTHONPATH" in environment else []
    environment["PYTHONPATH"] = os.pathsep.join(import_path())
    pipe_fd = worker_end.fileno()
    arguments = [str(pipe_fd), "" if gpu_share is None else str(gpu_share), *user_path]
    try:
        f = log.open("ab")
    except OSError as error:
        raise build_output_error(log, error) from None
    with f:
        return subprocess.Popen(
            [sys.executable, "-m", "fbnetv3.nars.execution.worker", *arguments],
            pass_fds=[pipe_fd],
            stdin=subprocess.DEVNULL,
            stdout=f,
            stderr=f,
            env=environment,
            start_new_session=True,  # its process group can be killed as a whole
        )
