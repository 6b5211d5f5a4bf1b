"""Copies that overlap with computation: their order, and that they change nothing."""

import contextlib
from dataclasses import replace

import pytest
import torch

from fbnetv3.data import Batch
from fbnetv3.data.batches.device_copies import HostTensors, copy_to_host, one_ahead, prefetch_to_device

CPU = torch.device("cpu")


def log_items(log, count):
    for i in range(count):
        log.append(f"take {i}")
        yield i


def test_items_are_taken_one_ahead():
    log = []
    for i in one_ahead(log_items(log, 3)):
        log.append(f"use {i}")
    assert log == ["take 0", "take 1", "use 0", "take 2", "use 1", "use 2"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_item_is_used(count):
    assert list(one_ahead(range(count))) == list(range(count))


def test_an_error_while_taking_an_item_is_raised():
    def items():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(one_ahead(items()))


def make_batches(count):
    return [
        Batch(torch.full((2, 1, 4, 4), i), torch.tensor([i, i]), [2 * i, 2 * i + 1]) for i in range(count)
    ]


def test_batches_for_a_cpu_are_passed_on_and_not_read_ahead():
    log = []

    def read():
        for batch in make_batches(3):
            log.append(f"read {batch.indices[0]}")
            yield batch

    for batch in prefetch_to_device(read(), CPU):
        log.append(f"use {batch.indices[0]}")
    assert log == ["read 0", "use 0", "read 2", "use 2", "read 4", "use 4"]


class SimulatedStream:
    """A stream of a GPU that only writes down what is asked of it."""

    def __init__(self, log, name):
        self.log = log
        self.name = name
        self.events = 0

    def record_event(self):
        self.events += 1
        return f"event {self.events}"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


class SimulatedTensor:
    """A tensor on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, log):
        self.log = log

    def record_stream(self, stream):
        self.log.append(f"used on {stream.name}")


def test_a_gpu_copies_the_next_batch_before_it_computes_on_this_one(monkeypatch):
    """It waits for the copy of this batch alone, and keeps the memory until the computation has ended."""
    log = []
    streams = {"copies": SimulatedStream(log, "copies"), "compute": SimulatedStream(log, "compute")}
    current = ["compute"]

    @contextlib.contextmanager
    def select(stream):
        current.append(stream.name)
        yield
        current.pop()

    def copy_to(batch, device):
        log.append(f"copy {batch.indices[0]} on {current[-1]} to {device}")
        return replace(batch, images=SimulatedTensor(log), targets=SimulatedTensor(log))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams["copies"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[current[-1]])
    monkeypatch.setattr(torch.cuda, "stream", select)
    monkeypatch.setattr(Batch, "copy_to", copy_to)
    for batch in prefetch_to_device(make_batches(2), torch.device("cuda", 0)):
        log.append(f"compute {batch.indices[0]}")
    used = ["used on compute"] * 2
    assert log == [
        "copy 0 on copies to cuda:0",
        "copy 2 on copies to cuda:0",
        "compute waits for event 1",
        *used,
        "compute 0",
        "compute waits for event 2",
        *used,
        "compute 2",
    ]


def test_tensors_of_batches_are_concatenated():
    tensors = HostTensors()
    assert not tensors
    parts = [torch.rand(2, n) for n in (3, 1, 4)]
    for part in parts:
        tensors.add(part)
    assert tensors
    assert torch.equal(tensors.concatenate(dim=1), torch.cat(parts, 1))


@pytest.mark.gpu
def test_copies_on_a_gpu_are_complete_when_they_are_used():
    device = torch.device("cuda", 0)
    batches = [Batch(torch.randint(256, (64, 3, 224, 224), dtype=torch.uint8), torch.arange(64), range(64))]
    batches = [batch.pin_memory() for batch in batches * 4]
    for batch, copy in zip(batches, prefetch_to_device(batches, device), strict=True):
        total = copy_to_host(copy.images.sum())
        torch.rand(4096, 4096, device=device) @ torch.rand(4096, 4096, device=device)
        assert total().item() == batch.images.sum().item()
        assert torch.equal(copy.targets.cpu(), batch.targets)
