"""Time repeated calls, with warmup and percentiles, and measure memory."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

try:
    import resource
except ImportError:  # Windows has no resource: memory is not measured there
    resource = None  # type: ignore[assignment]

_MAX_MEDIAN_EXCESS = 0.1  # of the median over the fastest call, on an idle machine


@dataclass(frozen=True)
class Timing:
    """The latencies of repeated calls, in ms."""

    calls: int
    min: float
    median: float
    p90: float
    p99: float

    @property
    def is_disturbed(self) -> bool:
        """Whether half of the calls were much slower than the fastest, as if other programs were running."""
        return self.median > (1 + _MAX_MEDIAN_EXCESS) * self.min


def read_clock(device: str | torch.device = "cpu") -> float:
    """Return the time in seconds, once a device of torch has finished its work.

    A GPU computes while the CPU goes on: without waiting, only the launch of its work would be timed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def time_calls(
    call: Callable[[], object],
    *,
    device: str | torch.device = "cpu",
    seconds: float = 2.0,
    warmup: float = 0.3,
    min_calls: int = 10,
) -> Timing:
    """Time calls for `seconds`, and at least `min_calls` of them, after a warmup of `warmup` seconds and two calls.

    Each includes the work that it starts on `device`.
    """
    _repeat(call, device, warmup, min_calls=2)
    milliseconds = 1e3 * np.array(_repeat(call, device, seconds, min_calls))
    median, p90, p99 = map(float, np.percentile(milliseconds, (50, 90, 99)))
    return Timing(len(milliseconds), float(milliseconds.min()), median, p90, p99)


def _repeat(
    call: Callable[[], object], device: str | torch.device, seconds: float, min_calls: int
) -> list[float]:
    times: list[float] = []
    begin = read_clock(device)
    while len(times) < min_calls or time.perf_counter() - begin < seconds:
        start = read_clock(device)
        call()
        times.append(read_clock(device) - start)
    return times


class PeakMemoryMeter:
    """Measures this process's peak memory relative to its memory when the meter was created."""

    def __init__(self) -> None:
        # Linux can reset a process's peak; on other systems, memory below an earlier peak goes unnoticed
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _process_memory("VmRSS")

    def peak(self) -> int:
        """Return the peak so far, in bytes."""
        return max(0, _process_memory("VmHWM") - self._before)


def _process_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes; the peak on systems without it, 0 on Windows."""
    if text := _proc_value("/proc/self/status", field):
        return 1024 * int(text.split()[0])
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name() -> str:
    """Return the name of this machine's processor."""
    return (
        _proc_value("/proc/cpuinfo", "model name", "Hardware") or platform.processor() or platform.machine()
    )


def _proc_value(file: str, *fields: str) -> str:
    """Return the value of the first line that begins with one of the fields; "" without such a line or file."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(fields):
                return line.split(":", 1)[1].strip()
    return ""
