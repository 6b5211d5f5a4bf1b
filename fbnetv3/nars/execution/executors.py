"""Where candidates are evaluated: in processes of this machine, in this very process, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import cloudpickle

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.nars.evaluators.evaluator_registry import Evaluate
from fbnetv3.nars.execution.jobs import Executor, Job, Outcome
from fbnetv3.nars.execution.worker import evaluate
from fbnetv3.nars.space.search_space import Space

EXECUTORS = ("local", "serial", "ray")
# How long an interrupted evaluation may take to save itself.
_GRACE = 20.0


@contextlib.contextmanager
def open_executor(
    kind: str,
    space: Space,
    evaluator: Evaluate,
    *,
    workers: int,
    time_limit: float | None,
    logs: Path,
    address: str | None = None,
    resources: dict[str, float] | None = None,
) -> Iterator[Executor]:
    """An executor, which ends with the block.

    Args:
        kind: "local", "serial" or "ray".
        space: of the candidates.
        evaluator: what evaluates them.
        workers: how many at a time.
        time_limit: most seconds of an evaluation, the start of its process included; None for no limit.
        logs: folder for what local processes print.
        address: of the Ray cluster; None starts one on this machine.
        resources: what an evaluation needs of it, such as {"num_cpus": 4, "num_gpus": 1}.

    Raises:
        UsageError: no such executor, or it cannot do what is asked of it.
    """
    if kind not in EXECUTORS:
        raise UsageError(f"executor {kind!r} is not one of {', '.join(EXECUTORS)}")
    if kind == "serial" and time_limit is not None:
        raise UsageError("time_limit: the serial executor cannot end an evaluation; use the local one")
    if kind == "serial":
        executor: Executor = SerialExecutor(space, evaluator)
    elif kind == "local":
        executor = LocalExecutor(space, evaluator, workers, time_limit, logs)
    else:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            from fbnetv3.nars.execution.ray_executor import RayExecutor
        except ImportError:
            raise UsageError("executor ray: Ray is not installed; pip install 'ray>=2'") from None
        executor = RayExecutor(space, evaluator, workers, time_limit, address, resources)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place of the tool's
    try:
        yield executor
    finally:
        executor.close()


class SerialExecutor:
    """Evaluates in the calling process, one after the other: for evaluations that take no time, and for debuggers."""

    slots = 1

    def __init__(self, space: Space, evaluator: Evaluate) -> None:
        self._setup = space, evaluator
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        return [evaluate(self._setup, self._jobs.popleft())] if self._jobs else []

    def close(self) -> None:
        self._jobs.clear()


class _Worker:
    """A process that evaluates, and the pipe to it."""

    def __init__(self, payload: bytes, log: Path, threads: int) -> None:
        self.pipe, theirs = Pipe()
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        own_path = [environment["PYTHONPATH"]] if "PYTHONPATH" in environment else []
        try:
            with log.open("ab") as f:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "fbnetv3.nars.execution.worker", str(theirs.fileno()), *own_path],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=f,
                    stderr=f,
                    env={**environment, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                    start_new_session=True,  # so that all that it starts can be ended with it
                )
        except OSError as error:
            raise OutputError(f"{log}: cannot be written ({error.strerror})") from None
        theirs.close()
        self.log = log
        self.job: Job | None = None
        self.began = 0.0
        with contextlib.suppress(OSError):  # a process that has died already is noticed when it is waited for
            self.pipe.send_bytes(payload)

    def give(self, job: Job) -> None:
        self.job, self.began = job, time.monotonic()
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(cloudpickle.dumps(job))

    def kill(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()


class LocalExecutor:
    """Evaluates in processes of this machine. What a process prints goes to a log file of its own.

    Args:
        space: of the candidates.
        evaluator: goes to the processes by cloudpickle, so that functions of a script or a notebook will do.
        workers: how many processes.
        time_limit: seconds after which an evaluation is ended, or None.
        logs: folder of their logs.
    """

    def __init__(self, space: Space, evaluator: Evaluate, workers: int, time_limit: float | None, logs: Path) -> None:
        self.slots, self.time_limit, self.logs = workers, time_limit, logs
        try:
            self._payload = cloudpickle.dumps((space, evaluator))
        except Exception as error:
            raise UsageError(
                f"the evaluator cannot be sent to other processes ({error}): "
                "open files and the like in the function itself, or use the serial executor"
            ) from None
        self._workers: dict[int, _Worker] = {}

    def submit(self, job: Job) -> None:
        for slot in range(self.slots):
            if slot not in self._workers:
                self.logs.mkdir(parents=True, exist_ok=True)
                threads = max(1, (os.cpu_count() or 1) // self.slots)
                self._workers[slot] = _Worker(self._payload, self.logs / f"worker_{slot}.txt", threads)
            if self._workers[slot].job is None:
                self._workers[slot].give(job)
                return
        raise AssertionError("more jobs than slots")

    def wait(self, seconds: float) -> list[Outcome]:
        until = time.monotonic() + seconds
        busy = {worker.pipe: slot for slot, worker in self._workers.items() if worker.job is not None}
        if not busy:
            return []
        if self.time_limit is not None:
            first = min(self._workers[slot].began for slot in busy.values())
            until = min(until, first + self.time_limit)
        ready = wait(list(busy), max(0.0, until - time.monotonic()))
        # a process that is gone may leave its end of the pipe open, in a child of its own
        gone = [slot for slot in busy.values() if self._workers[slot].process.poll() is not None]
        slots = dict.fromkeys([*(busy[pipe] for pipe in ready if isinstance(pipe, Connection)), *gone])
        return [self._receive(slot) for slot in slots] + self._end_overdue()

    def _receive(self, slot: int) -> Outcome:
        worker = self._workers[slot]
        job, worker.job = worker.job, None
        assert job is not None  # it is busy
        try:
            if worker.pipe.poll():
                return cloudpickle.loads(worker.pipe.recv_bytes())
            raise EOFError
        except (EOFError, OSError):
            worker.kill()
            del self._workers[slot]
            return Outcome(job.number, None, _ended(worker), time.monotonic() - worker.began)

    def _end_overdue(self) -> list[Outcome]:
        outcomes = []
        for slot, worker in list(self._workers.items()):
            gone = time.monotonic() - worker.began
            if worker.job is not None and self.time_limit is not None and gone >= self.time_limit:
                worker.kill()
                del self._workers[slot]
                error = f"ended after {gone:.0f} s: the time limit is {self.time_limit:g} s"
                outcomes.append(Outcome(worker.job.number, None, error, gone))
        return outcomes

    def close(self) -> None:
        for worker in self._workers.values():
            if worker.job is not None:
                worker.process.terminate()
        until = time.monotonic() + _GRACE
        for worker in self._workers.values():
            if worker.job is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, until - time.monotonic()))
            worker.kill()
        self._workers.clear()


def _ended(worker: _Worker) -> str:
    code = worker.process.returncode
    how = f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = "; the memory may have run out" if code == -signal.SIGKILL else ""
    lines = _last_lines(worker.log)
    return f"the process that evaluated it ended ({how}{hint}){lines}"


def _last_lines(log: Path, most: int = 300) -> str:
    with contextlib.suppress(OSError):
        text = log.read_bytes()[-most:].decode(errors="replace").strip()
        last = text.splitlines()[-1] if text else ""
        if last and not last.startswith("--- trial"):
            return f": {last}"
    return ""
