"""Timing of calls, and memory of a process."""

import mmap
import time

import pytest
import torch

from fbnetv3.deploy.latency.timing import PeakMemoryMeter, Timing, device_name, read_clock, time_calls


def test_timing():
    timing = time_calls(lambda: time.sleep(0.002), seconds=0.1, warmup=0.01)
    assert 10 <= timing.calls <= 50
    assert 2 <= timing.min <= timing.median <= timing.p90 <= timing.p99
    assert timing.median < 20
    assert time_calls(lambda: None, seconds=0, warmup=0, min_calls=12).calls == 12


class Machine:
    """A CPU that launches work in 1 ms, and a GPU that then computes for 5 ms, on a clock of their own."""

    def __init__(self, monkeypatch):
        self.now = self.free_at = 0.0  # seconds
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def launch(self):
        self.now += 0.001
        self.free_at = max(self.free_at, self.now) + 0.005

    def synchronize(self, device):
        assert device == torch.device("cuda", 1)
        self.now = max(self.now, self.free_at)


def test_a_call_takes_until_its_device_has_finished(monkeypatch):
    machine = Machine(monkeypatch)
    on_gpu = time_calls(machine.launch, device="cuda:1", seconds=0.1, warmup=0.01)
    assert (on_gpu.min, on_gpu.median, on_gpu.p99) == pytest.approx((6, 6, 6))
    assert on_gpu.calls == pytest.approx(0.1 / 0.006, abs=1)
    machine.launch()
    assert read_clock("cuda:1") == pytest.approx(machine.free_at)


def test_the_cpu_does_not_wait_for_a_gpu(monkeypatch):
    machine = Machine(monkeypatch)
    assert time_calls(machine.launch, seconds=0.1, warmup=0.01).median == pytest.approx(1)


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
