"""The losses of a detector's training step, as all processes see them, and when to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from fbnetv3.data.batches.device_copies import HostCopy, copy_to_host
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import has_pending_interrupt


@dataclass(frozen=True)
class StepInfo:
    """What a process knows of a step besides its losses."""

    iteration: int
    lr: float
    images: Sequence[dict[str, Any]]
    data_time: float  # seconds that it waited for the images


@dataclass(frozen=True)
class StepMetrics:
    """Losses, loading times and signals of a step, which `exchange_step` has exchanged between the processes."""

    info: StepInfo  # of this process
    names: list[str]  # of the losses
    device_losses: Tensor  # float64 (2, losses): of this process, and their means over all processes
    host_losses: HostCopy  # the same, which may be on their way
    data_time: float  # the longest of all processes
    any_interrupt: bool  # whether any process has deferred a signal

    def own_losses(self) -> dict[str, float]:
        """Return the losses of this process by name. On a GPU, this waits until they are computed."""
        return self._read(0)

    def mean_losses(self) -> dict[str, float]:
        """Return the means of the losses over all processes, likewise."""
        return self._read(1)

    def _read(self, row: int) -> dict[str, float]:
        return dict(zip(self.names, self.host_losses()[row].tolist(), strict=True))

    def is_non_finite(self) -> Tensor:
        """Return 1 if the sum of the mean losses is not finite, else 0: float32 (), on the device, without waiting."""
        return (~self.device_losses[1].sum().isfinite()).float()

    def write(self, storage: EventStorage) -> None:
        """Write to detectron2's storage what its trainer writes in each step: mean losses and loading times."""
        losses = self.mean_losses()
        scalars = {
            "rank_data_time": self.info.data_time,
            "data_time": self.data_time,
            **(losses if len(losses) > 1 else {}),
            "total_loss": sum(losses.values()),
        }
        storage.put_scalars(cur_iter=self.info.iteration, **scalars)


def exchange_step(losses: Mapping[str, Tensor], info: StepInfo, group: ProcessGroup) -> StepMetrics:
    """Exchange a step's losses, loading times and signals between the processes.

    All processes must call this together, with the same names of losses. There is one exchange on the CPU; GPUs
    exchange their losses among themselves, so that nobody waits for a GPU.
    """
    # float64 keeps the values; a stacked tensor is a single copy
    own = torch.stack([loss.detach() for loss in losses.values()]).double()
    # The sum over the processes has the time of each
    times = [0.0] * group.size
    times[group.rank] = info.data_time
    if own.device.type == "cuda":
        mean = group.mean(own.clone())
        interrupts, *times = group.sum(has_pending_interrupt(), *times)
    else:
        interrupts, *sums = group.sum(has_pending_interrupt(), *times, *own.tolist())
        times, totals = sums[: group.size], sums[group.size :]
        mean = own.new_tensor(totals) / group.size
    device_losses = torch.stack([own, mean])
    host_losses = copy_to_host(device_losses)
    return StepMetrics(info, list(losses), device_losses, host_losses, max(times), interrupts > 0)


def first_diverged(
    metrics: StepMetrics, group: ProcessGroup
) -> tuple[dict[str, float], Sequence[dict[str, Any]]]:
    """Return losses and images of the first process whose losses are not finite; all processes must call this."""
    losses = metrics.own_losses()
    own = (losses, metrics.info.images)
    reports = group.gather(None if math.isfinite(sum(losses.values())) else own)
    # If all are finite, only their mean has overflowed
    return next((report for report in reports if report is not None), None) or group.broadcast(own)
