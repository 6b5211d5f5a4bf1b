"""How long something takes: warmed up, called again and again, with percentiles; and how much memory it needs."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_BUSY = 0.1


@dataclass(frozen=True)
class Timing:
    """Latencies of many calls, in ms.

    Attributes:
        calls: how many.
        least, median, mean, p90, p99: of them.
    """

    calls: int
    least: float
    median: float
    mean: float
    p90: float
    p99: float

    @property
    def is_disturbed(self) -> bool:
        """Whether half of the calls took much longer than the shortest: as where the machine does something else."""
        return self.median > (1 + _BUSY) * self.least


def time_calls(
    call: Callable[[], object], *, seconds: float = 2.0, warm_up: float = 0.3, least_calls: int = 10
) -> Timing:
    """Call for a while, and see how long each call takes.

    Args:
        call: what to time.
        seconds: how long to go on.
        warm_up: how long to call it before, at least twice.
        least_calls: how often to call it, however long that takes.
    """
    _repeated(call, warm_up, 2)
    took = 1e3 * np.array(_repeated(call, seconds, least_calls))
    median, p90, p99 = np.percentile(took, (50, 90, 99))
    return Timing(len(took), float(took.min()), float(median), float(took.mean()), float(p90), float(p99))


def _repeated(call: Callable[[], object], seconds: float, least_calls: int) -> list[float]:
    took: list[float] = []
    begin = time.perf_counter()
    while len(took) < least_calls or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return took


class MemoryWatch:
    """The most memory that this process takes from now on, above what it has now."""

    def __init__(self) -> None:
        # Linux forgets the peak that a process has had; elsewhere, what stays below an earlier peak is not seen
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory("VmRSS") or _peak()

    def peak(self) -> int:
        """In bytes."""
        return max(0, (_memory("VmHWM") or _peak()) - self._before)


def _memory(what: str) -> int:
    """A line of Linux' own account of this process, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return 1024 * int(line.split()[1])
    return 0


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name() -> str:
    """The processor of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return next(iter(found), platform.processor() or platform.machine())
