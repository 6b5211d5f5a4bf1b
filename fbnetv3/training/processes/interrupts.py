"""Ctrl-C and SIGTERM, deferred to a point between two steps at which a run can be saved.

A KeyboardInterrupt raised at any other point may be lost: Python drops exceptions that are raised in a destructor.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from fbnetv3.errors import Terminated
from fbnetv3.training.processes.distributed import ProcessGroup

_EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}

# Signals received since `deferred_interrupts` was entered, in order. Signal handlers belong to the process, so this
# is global too: a run in another thread sees the main thread's signals and stops as well.
_pending: list[signal.Signals] = []


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM until `check_interrupt`, or to the end of the block.

    A second Ctrl-C interrupts at once; SIGTERM does not, since some schedulers send it repeatedly. Outside the main
    thread, which alone receives signals, this changes no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def record(number: int, frame: object) -> None:
        _pending.append(signal.Signals(number))
        if len(_pending) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    previous_handlers = {number: signal.signal(number, record) for number in _EXCEPTIONS}
    try:
        yield
        check_interrupt()
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        _pending.clear()


def has_pending_interrupt() -> bool:
    """Return whether this process has deferred a signal."""
    return bool(_pending)


def agree_on_interrupt(group: ProcessGroup) -> bool:
    """Return whether any process has deferred a signal, and make it pending in all. All must call this together."""
    if not group.any(has_pending_interrupt()):
        return False
    # Ranks without a signal take the first one of the others
    received = [number for numbers in group.gather(_pending) for number in numbers]
    if not _pending:
        _pending.append(received[0])
    return True


def check_interrupt() -> None:
    """Raise KeyboardInterrupt or Terminated if a signal has been deferred."""
    if _pending:
        raise _EXCEPTIONS[_pending[0]]
