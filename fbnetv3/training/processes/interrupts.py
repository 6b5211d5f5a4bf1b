"""Ctrl-C and SIGTERM between two steps, where a run can save itself and where nothing swallows them.

Raised in the middle of a destructor, a KeyboardInterrupt would be dropped by Python and the run would go on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from fbnetv3.errors import Terminated
from fbnetv3.training.processes.distributed import World

_SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_pending: list[signal.Signals] = []


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold the first Ctrl-C or SIGTERM back until `check_interrupt`; a second Ctrl-C interrupts at once.

    SIGTERM comes more than once from some schedulers, and means the same each time.
    Other threads than the main one get no signals; there it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        _pending.append(signal.Signals(number))
        if len(_pending) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
        check_interrupt()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()


def agree_on_interrupt(world: World) -> bool:
    """Whether any process of a training holds one back; then every one does, and all can stop at the same place."""
    if not world.any(bool(_pending)):
        return False
    held = [number for numbers in world.gather([int(number) for number in _pending]) for number in numbers]
    if not _pending:
        _pending.append(signal.Signals(held[0]))
    return True


def check_interrupt() -> None:
    """Raise what was held back, if there is anything: KeyboardInterrupt or Terminated."""
    if _pending:
        raise _SIGNALS[_pending[0]]
