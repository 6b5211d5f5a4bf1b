"""Timing of calls, and memory of a process."""

import mmap
import time

from fbnetv3.deploy.latency.timing import PeakMemoryMeter, Timing, device_name, time_calls


def test_timing():
    timing = time_calls(lambda: time.sleep(0.002), seconds=0.1, warmup=0.01)
    assert 10 <= timing.calls <= 50
    assert 2 <= timing.min <= timing.median <= timing.p90 <= timing.p99
    assert timing.median < 20
    assert time_calls(lambda: None, seconds=0, warmup=0, min_calls=12).calls == 12


def test_a_disturbed_timing():
    assert Timing(10, min=1, median=1.2, p90=2, p99=2).is_disturbed
    assert not Timing(10, min=1, median=1.05, p90=2, p99=2).is_disturbed


def test_memory_is_counted_from_the_start_of_the_meter():
    meter = PeakMemoryMeter()
    with mmap.mmap(-1, 40_000_000) as data:  # pages that the process has not used before
        data.write(bytes(40_000_000))
        assert 30e6 < meter.peak() < 300e6


def test_memory_is_zero_on_windows(monkeypatch):
    monkeypatch.setattr("fbnetv3.deploy.latency.timing.resource", None)
    monkeypatch.setattr("fbnetv3.deploy.latency.timing._proc_value", lambda file, *fields: "")
    assert PeakMemoryMeter().peak() == 0


def test_the_device_has_a_name():
    assert device_name()
