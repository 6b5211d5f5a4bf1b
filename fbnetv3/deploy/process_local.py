"""Objects that belong to one process, such as sessions with threads: opened again after a fork and after unpickling."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_instances: weakref.WeakSet[ProcessLocal] = weakref.WeakSet()


class ProcessLocal(Generic[T]):
    """An object that each process opens for itself, when it first needs it.

    A fork copies an object but not its threads: calls that wait for them would hang, and so might its destructor. The
    child therefore abandons the object, without destroying it, and opens another one. Pickling keeps only `open`.

    Args:
        open: function that opens the object; it must be possible to pickle it.
    """

    def __init__(self, open: Callable[[], T]) -> None:
        self._open = open
        self._values: list[T]  # none or one
        self._reset()

    def get(self) -> T:
        """Return the object of this process."""
        if not self._values:
            with self._lock:
                if not self._values:
                    self._values.append(self._open())
        return self._values[0]

    def _reset(self) -> None:
        self._values = []
        self._lock = threading.Lock()  # a new one, since a thread that the child lacks may hold the other
        _instances.add(self)

    def _abandon(self) -> None:
        """Forget the object of the parent process, with one reference too many, so that nothing destroys it."""
        for value in self._values:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open = state["_open"]
        self._reset()


def _abandon_all() -> None:
    for instance in list(_instances):
        instance._abandon()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon_all)
