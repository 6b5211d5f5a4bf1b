"""The processes of one training, started by torchrun or by a scheduler that sets the same variables."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from fbnetv3.errors import UsageError, UserError

T = TypeVar("T")

# How long a process waits for the others before it gives up.
TIMEOUT = timedelta(minutes=10)


class LostProcessError(UserError):
    """Another process of the training is gone."""


@dataclass(frozen=True)
class World:
    """The processes that train one network together, as one of them sees them. By default it is alone.

    What the processes tell each other beside gradients goes through the CPU, so that no GPU has to wait for it.

    Attributes:
        rank: number of this process, from 0; process 0 alone writes files.
        size: how many there are.
        local_rank: number of this process on its machine, and of the GPU that it takes.
        group: the process group of everything but gradients.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number, added up over all processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum(flag)[0] > 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, on its device, without waiting for it there."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def share_buffers(self, *modules: nn.Module | None) -> None:
        """Put the buffers of process 0, such as BatchNorm's statistics, in place of each process's own."""
        if self.size > 1:
            for module in filter(None, modules):
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, behind what averages its gradients over the processes."""
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


ALONE = World()


def started_together() -> bool:
    """Whether this process is one of several, by the variables that torchrun sets."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Find the other processes of the training, and part from them at the end.

    Args:
        device: the config's; GPUs exchange gradients by NCCL, CPUs by Gloo.

    Raises:
        UsageError: some of torchrun's variables are missing, or there are fewer GPUs than processes.
        LostProcessError: the others cannot be found.
    """
    if dist.is_initialized():  # by the program that calls us, who also ends it
        group = _cpu_group()
        local_rank = torch.cuda.current_device() if torch.cuda.is_available() else 0
        try:
            yield World(dist.get_rank(), dist.get_world_size(), local_rank, group)
        finally:
            if group is not dist.group.WORLD:
                dist.destroy_process_group(group)
        return
    if not started_together():
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is set, {', '.join(missing)} not: start several processes with torchrun")
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UsageError(f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
    try:
        store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(
            backend, store=_fresh_part(store, rank, size), rank=rank, world_size=size, timeout=TIMEOUT
        )
        yield World(rank, size, local_rank, _cpu_group())
    except RuntimeError as error:
        if not _between_processes(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise LostProcessError(
            f"another process of this training is gone or does not answer ({reason}): "
            "its own message says why; start again with --resume"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _fresh_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of the store that belongs to this start of the processes alone.

    torchrun keeps one store over the restarts of its processes, and Gloo would find the addresses of dead ones in it.
    Process 0 therefore makes up a name, and gives it to each that says hello for as long as that one has not thanked.
    """
    if rank:
        me = uuid.uuid4().hex
        store.set(f"hello/{rank}", me)
        name = store.get(f"welcome/{me}").decode()
        store.set(f"thanks/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    name, missing, end = uuid.uuid4().hex, set(range(1, size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > end:
            raise dist.DistError(f"process {min(missing)} has not come within {TIMEOUT}")
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"thanks/{name}/{other}"])}
        time.sleep(0.02)
    return dist.PrefixStore(name, store)


def _between_processes(error: RuntimeError) -> bool:
    """Whether an error is of the exchange between processes. Gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _cpu_group() -> Any:
    """A process group for what lies in the CPU's memory."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT) if dist.get_backend() != "gloo" else dist.group.WORLD
