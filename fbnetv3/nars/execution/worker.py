"""Worker process that evaluates one candidate after another; `LocalExecutor` starts it with
`python -m fbnetv3.nars.execution.worker`.

It talks to its parent over a pipe. When the parent exits, it kills itself and every process that it started.
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
import traceback
from multiprocessing.connection import Connection

from fbnetv3.errors import UserError
from fbnetv3.nars.evaluators.evaluator_registry import check_learning_curve
from fbnetv3.nars.execution.attempts import Outcome, SearchContext, TrialAttempt
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.imports import import_modules


def evaluate_attempt(context: SearchContext, attempt: TrialAttempt) -> Outcome:
    """Evaluate a candidate. Exceptions of the evaluator become the outcome's error."""
    start = time.monotonic()
    curve = None
    error = None
    try:
        import_modules(context.imports, "imports")
        candidate = Candidate(
            context.space,
            attempt.vector,
            number=attempt.number,
            seed=attempt.seed,
            full_epochs=attempt.full_epochs,
            folder=attempt.folder,
            attempt=attempt.index,
        )
        curve = check_learning_curve(context.evaluator(candidate, attempt.epochs), attempt.epochs)
    except UserError as problem:
        error = str(problem)
    except (Exception, SystemExit) as problem:
        # With the file and line where it was raised
        frame = traceback.extract_tb(problem.__traceback__)[-1]
        origin = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        error = f"{type(problem).__name__}: {problem} (in {origin})"
    if error is not None:
        error = error.encode("utf-8", "replace").decode()  # file names may hold invalid surrogates
    return Outcome(attempt.number, curve, error, time.monotonic() - start)


def _write_log(log: int, line: str) -> None:
    # Print the evaluator's buffered output first; it may have closed or replaced sys.stdout
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # a full disk must not fail the trial
        os.write(log, f"{line}\n".encode())


def _receive_attempts(pipe: Connection, attempts: queue.SimpleQueue[bytes]) -> None:
    """Move attempts from the pipe to the queue; kill this process group when the parent is gone.

    Runs in its own thread so that the parent's exit is noticed even during an evaluation.
    """
    with contextlib.suppress(EOFError, OSError):
        while True:
            attempts.put(pipe.recv_bytes())
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Evaluate attempts until the pipe closes.

    Command line: the pipe's file descriptor, and the user's PYTHONPATH if it is set. This process runs with the
    parent's whole import path in PYTHONPATH, which the evaluator's own subprocesses should not inherit.
    """
    pipe = Connection(int(sys.argv[1]))
    log = os.dup(1)  # the evaluator may close or redirect standard output
    os.environ.pop("PYTHONPATH", None)
    if len(sys.argv) > 2:
        os.environ["PYTHONPATH"] = sys.argv[2]
    context: SearchContext = pickle.loads(pipe.recv_bytes())
    attempts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_attempts, args=(pipe, attempts), daemon=True).start()
    while True:
        attempt: TrialAttempt = pickle.loads(attempts.get())
        _write_log(log, f"--- trial {attempt.number}")
        outcome = evaluate_attempt(context, attempt)
        if outcome.error:
            _write_log(log, f"--- trial {attempt.number}: {outcome.error}")
        pipe.send_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
