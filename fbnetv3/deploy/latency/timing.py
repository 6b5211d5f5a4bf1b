"""Time repeated calls, with warmup and percentiles, and measure memory."""

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

_DISTURBED = 0.1  # median above the fastest call by this share


@dataclass(frozen=True)
class Timing:
    """Latencies of repeated calls, in ms.

    Attributes:
        calls: number of calls.
        min: fastest call.
        median: 50th percentile.
        mean: average.
        p90: 90th percentile.
        p99: 99th percentile.
    """

    calls: int
    min: float
    median: float
    mean: float
    p90: float
    p99: float

    @property
    def is_disturbed(self) -> bool:
        """Whether half of the calls were much slower than the fastest, as when other processes use the machine."""
        return self.median > (1 + _DISTURBED) * self.min


def time_calls(call: Callable[[], object], *, seconds: float = 2.0, warmup: float = 0.3, min_calls: int = 10) -> Timing:
    """Call repeatedly and time each call.

    Args:
        call: the function to time.
        seconds: how long to repeat it.
        warmup: seconds of untimed calls before (at least two calls).
        min_calls: minimum number of timed calls, even if they take longer than `seconds`.
    """
    _repeat(call, warmup, min_calls=2)
    milliseconds = 1e3 * np.array(_repeat(call, seconds, min_calls))
    median, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    return Timing(
        len(milliseconds),
        float(milliseconds.min()),
        float(median),
        float(milliseconds.mean()),
        float(p90),
        float(p99),
    )


def _repeat(call: Callable[[], object], seconds: float, min_calls: int) -> list[float]:
    """Return the seconds of each call."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < min_calls or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


class MemoryWatch:
    """Measures this process's peak memory relative to its memory when the watch was created."""

    def __init__(self) -> None:
        # Linux can reset a process's peak; on other systems, memory below an earlier peak goes unnoticed
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _process_status("VmRSS") or _peak_memory()

    def peak(self) -> int:
        """Return the peak so far, in bytes."""
        return max(0, (_process_status("VmHWM") or _peak_memory()) - self._before)


def _process_status(field: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 on systems without it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name() -> str:
    """Return the name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
