"""Copies between host and device that overlap with computation; on a CPU there is nothing to copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fbnetv3.data.batches.batch import Batch

T = TypeVar("T")

HostCopy = Callable[[], Tensor]
"""Waits for a copy to the host and returns it."""


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, each after the next one has been taken, which starts the work on that one."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item
            item = following
        yield item


def prefetch_to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with their tensors on the device.

    For a GPU, a second stream copies the next batch during the computations on this one. For a CPU, the batches stay as
    they are, and none is read ahead.
    """
    if device.type != "cuda":
        return iter(batches)
    stream = torch.cuda.Stream(device)
    return map(_use_copy, one_ahead(map(partial(_start_copy, stream, device), batches)))


def _start_copy(
    stream: torch.cuda.Stream, device: torch.device, batch: Batch
) -> tuple[Batch, torch.cuda.Event]:
    """Return the batch on the device, and the event after which its tensors are complete."""
    with torch.cuda.stream(stream):
        return batch.copy_to(device), stream.record_event()


def _use_copy(started: tuple[Batch, torch.cuda.Event]) -> Batch:
    """Return the batch for use on the current stream."""
    batch, copied = started
    stream = torch.cuda.current_stream(batch.images.device)
    # The GPU waits for this copy, not for the next one; the host does not wait
    stream.wait_event(copied)
    # Their memory must not be reused before the computations on them have ended
    batch.images.record_stream(stream)
    batch.targets.record_stream(stream)
    return batch


def copy_to_host(tensor: Tensor) -> HostCopy:
    """Start to copy a tensor to the host. Getting the copy does not wait for what the device computes afterwards."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = tensor.to("cpu", non_blocking=True)  # torch allocates pinned memory
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait


class HostTensors:
    """Tensors of successive batches on the host, where they take no memory of the device.

    The device may be one batch behind `add`.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._last: HostCopy | None = None

    def __bool__(self) -> bool:
        return self._last is not None

    def add(self, tensor: Tensor) -> None:
        """Start to copy a tensor of the device."""
        last, self._last = self._last, copy_to_host(tensor)
        if last is not None:
            # Pinned memory is scarce: free it for the next copy
            self._tensors.append(last().clone())

    def concatenate(self, dim: int = 0) -> Tensor:
        """Return all tensors along a dimension; there must be at least one."""
        last = [self._last()] if self._last is not None else []
        return torch.cat([*self._tensors, *last], dim)
