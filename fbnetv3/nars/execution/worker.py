"""A process that evaluates one candidate after the other: `python -m fbnetv3.nars.execution.worker`, started by `executors`.

It speaks with its parent over a pipe, and ends, with all that it has started, when the parent does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from fbnetv3.errors import UserError
from fbnetv3.nars.evaluators.evaluator_registry import check_curve
from fbnetv3.nars.execution.jobs import Job, Outcome
from fbnetv3.nars.space.candidate import Candidate


def evaluate(setup: tuple[Any, Any], job: Job) -> Outcome:
    """Evaluate a candidate; whatever the evaluator raises becomes the outcome's error.

    Args:
        setup: the space and the evaluator.
        job: the candidate, and how far to evaluate it.
    """
    space, evaluator = setup
    start = time.monotonic()
    curve, error = None, None
    try:
        candidate = Candidate(space, job.vector, job.number, job.seed, job.full_epochs, job.folder, job.attempt)
        curve = check_curve(evaluator(candidate, job.epochs), job.epochs)
    except UserError as problem:
        error = str(problem)
    except (Exception, SystemExit) as problem:
        error = f"{type(problem).__name__}: {problem}{_where(problem)}"
    if error is not None:
        error = error.encode("utf-8", "replace").decode()  # names of files may hold what is no text
    return Outcome(job.number, curve, error, time.monotonic() - start)


def _where(error: BaseException) -> str:
    """The last line of the user's code that the error came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" (in {os.path.basename(trace.tb_frame.f_code.co_filename)}, line {trace.tb_lineno})"


def _note(log: int, line: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what the evaluator has printed comes before
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # a full disk costs the line, not the trial
        os.write(log, f"{line}\n".encode())


def main() -> None:
    """Take jobs from the pipe whose number is the first argument, until it closes.

    The second is the parent's PYTHONPATH, if it has one: ours holds all of its import path, which is nothing for the
    processes that evaluators start.
    """
    pipe = Connection(int(sys.argv[1]))
    log = os.dup(1)  # an evaluator may close standard output, or put something else in its place
    os.environ.pop("PYTHONPATH", None)
    if len(sys.argv) > 2:
        os.environ["PYTHONPATH"] = sys.argv[2]
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        # Reading here all the time shows at once that the parent is gone, even in the middle of an evaluation.
        with contextlib.suppress(EOFError, OSError):
            while True:
                jobs.put(pipe.recv_bytes())
        os.killpg(os.getpgid(0), signal.SIGKILL)

    setup = pickle.loads(pipe.recv_bytes())
    threading.Thread(target=listen, daemon=True).start()
    while True:
        job = pickle.loads(jobs.get())
        _note(log, f"--- trial {job.number}")
        outcome = evaluate(setup, job)
        if outcome.error:
            _note(log, f"--- trial {job.number}: {outcome.error}")
        pipe.send_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
