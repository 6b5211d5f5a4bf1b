"""Losses of training steps, copied to the host in the background and read some steps later, without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fbnetv3.data import Batch
from fbnetv3.data.batches.device_copies import HostCopy, copy_to_host

GPU_DELAY = 4
"""Steps by which a GPU may be behind. Each keeps its batch in memory, for the error of a non-finite loss."""


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, and what an error message says about the step."""

    loss: float  # the mean over all processes
    own_loss: float  # of this process
    step: int  # number of the step, from 1
    lr: float  # learning rate of the step, before the factors of parameter groups
    batch: Batch  # of this process, before mixup


@dataclass
class _PendingLoss:
    """A loss whose copy may be on its way."""

    copy: HostCopy  # of the loss over all processes, and this process's own
    step: int
    lr: float
    batch: Batch

    def wait(self) -> StepLoss:
        """Return the loss as soon as it has arrived."""
        loss, own_loss = self.copy().tolist()
        return StepLoss(loss, own_loss, self.step, self.lr, self.batch)


@dataclass
class DelayedLosses:
    """The losses of the last steps, of which the newest `delay` are still being computed.

    Losses are read by the number of their step, not by whether they have arrived, so that all processes of a group see
    a non-finite one at the same point. With a delay of 0, a step's loss is read at once, which waits for it.
    """

    delay: int
    _pending: deque[_PendingLoss] = field(init=False, default_factory=deque)

    def add(self, loss: Tensor, own_loss: Tensor, step: int, lr: float, batch: Batch) -> None:
        """Begin to copy a step's loss, the mean over all processes, and this process's own."""
        copy = copy_to_host(torch.stack([loss, own_loss]))
        self._pending.append(_PendingLoss(copy, step, lr, batch))

    def read(self, *, all_steps: bool = False) -> Iterator[StepLoss]:
        """Yield the losses that are due, oldest first; with `all_steps`, also those that must be waited for."""
        while len(self._pending) > (0 if all_steps else self.delay):
            yield self._pending.popleft().wait()
