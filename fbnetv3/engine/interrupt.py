"""Ctrl-C between two steps, where nothing swallows it: raised inside a destructor, Python would drop it and go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_pending = threading.Event()


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold the first Ctrl-C back until `check_interrupt`; a second one interrupts at once.

    Other threads than the main one get no signals; there it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        if _pending.is_set():
            raise KeyboardInterrupt
        _pending.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
        check_interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
        _pending.clear()


def check_interrupt() -> None:
    """Raise the KeyboardInterrupt that was held back, if there is one."""
    if _pending.is_set():
        raise KeyboardInterrupt
