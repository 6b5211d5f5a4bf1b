"""Worker process that evaluates one candidate after another.

`LocalExecutor` starts it with `python -m fbnetv3.nars.execution.worker` and talks to it over a pipe. When its parent
exits, it kills itself and every process that it started.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

from fbnetv3.nars.execution.attempt_evaluation import evaluate_in_worker
from fbnetv3.nars.execution.attempts import SearchContext, TrialAttempt


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

    Command line: the pipe's file descriptor, the number of GPUs (empty if it is not known), and the user's PYTHONPATH
    if it is set. This process runs with the parent's whole import path in PYTHONPATH, which the evaluator's own
    subprocesses should not inherit.
    """
    pipe = Connection(int(sys.argv[1]))
    gpu_share = float(sys.argv[2]) if sys.argv[2] else None
    log = os.dup(1)  # the evaluator may close or redirect standard output
    os.environ.pop("PYTHONPATH", None)
    if len(sys.argv) > 3:
        os.environ["PYTHONPATH"] = sys.argv[3]
    context: SearchContext = pickle.loads(pipe.recv_bytes())
    attempts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_attempts, args=(pipe, attempts), daemon=True).start()
    while True:
        attempt: TrialAttempt = pickle.loads(attempts.get())
        _write_log(log, f"--- trial {attempt.trial}")
        outcome = evaluate_in_worker(context, attempt, gpu_share)
        if outcome.error:
            _write_log(log, f"--- trial {attempt.trial}: {outcome.error}")
        pipe.send_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
