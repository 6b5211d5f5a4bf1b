"""The training process group, started by torchrun or by a scheduler that sets the same environment variables."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from fbnetv3.errors import UsageError, UserError
from fbnetv3.modeling.sync_batchnorm import keeps_buffers_equal
from fbnetv3.utils.command_line import is_multi_process
from fbnetv3.utils.text import one_line

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""

SHARE_GPU = "FBNETV3_SHARE_GPU"
"""Environment variable for tests: 1 lets processes share a GPU, and exchange gradients through Gloo."""


class LostProcessError(UserError):
    """Another process in the training run has exited or stopped responding."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network together, seen from one of them; by default a single process.

    It is not torch's class of this name, of which `cpu_group` is an instance. Everything but gradients and buffers is
    exchanged on the CPU, so that exchanging it never waits for a GPU.
    """

    rank: int = 0
    size: int = 1  # the world size
    gpu_index: int = 0  # of the process's own GPU
    cpu_group: Any = field(default=None, repr=False)  # torch's, for everything but gradients

    @property
    def is_rank_0(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Sum each number over all processes."""
        if self.size == 1:
            return list(numbers)
        # float64 keeps counts exact
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.cpu_group)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.sum(flag)[0] > 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.cpu_group)
        return values[0]

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over all processes, in place and without synchronizing its device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def broadcast_buffers(self, *modules: nn.Module | None) -> None:
        """Overwrite the modules' buffers, such as BatchNorm statistics, with those of rank 0."""
        if self.size == 1:
            return
        # One message for each data type: a network has hundreds of small buffers
        buffers: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for module in filter(None, modules):
            for buffer in module.buffers():
                buffers[buffer.dtype].append(buffer)
        for group in buffers.values():
            message = torch.cat([buffer.flatten() for buffer in group])
            dist.broadcast(message, src=0)
            parts = message.split([buffer.numel() for buffer in group])
            for buffer, part in zip(group, parts, strict=True):
                buffer.copy_(part.view(buffer.shape))

    def data_parallel(
        self, model: nn.Module, device: torch.device, equal_types: tuple[type[nn.Module], ...] = ()
    ) -> nn.Module:
        """Wrap a model in DistributedDataParallel if there are several processes.

        Before each forward pass it broadcasts the buffers of rank 0, unless they stay equal anyway: see
        `keeps_buffers_equal`, also for `equal_types`.
        """
        if self.size == 1:
            return model
        device_ids = [device] if device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel(
            model, device_ids=device_ids, gradient_as_bucket_view=True
        )
        # Not an argument: torch 2.14 has renamed it, and only the new name broadcasts them once at the start
        if keeps_buffers_equal(model, equal_types):
            parallel.broadcast_buffers = False
        return parallel


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the process group that the environment describes, and leave it at the end of the block.

    GPUs, selected by the config key `device`, exchange gradients through NCCL, CPUs through Gloo. A `LostProcessError`
    ends the block if another process has exited or stopped responding.
    """
    # Three cases: a group that the calling program created and will destroy, a single process, torchrun's variables
    if dist.is_initialized():
        gpu_index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), gpu_index, _cpu_group())
        return
    if not is_multi_process():
        yield SINGLE_PROCESS
        return
    # torchrun sets all variables; a scheduler's script may omit one
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is set, but {', '.join(missing)} is not: start several processes with torchrun"
        )
    rank, size, local_rank = map(_read_integer_variable, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend, gpu = _select_backend(device, local_rank)
    try:
        store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
        store = _store_of_this_launch(store, rank, size)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
            # Without it, NCCL guesses the GPU from the rank, and warns
            device_id=gpu if backend == "nccl" else None,
        )
        yield ProcessGroup(rank, size, gpu.index if gpu else 0, _cpu_group())
    except RuntimeError as error:
        # Gloo's errors do not have their own type
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        problem = f"another training process exited or stopped responding ({one_line(error, 160)})"
        raise LostProcessError(
            f"{problem}: see its error message, then resume the run (--resume)"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _read_integer_variable(name: str) -> int:
    """Return the value of an environment variable of torchrun."""
    try:
        return int(os.environ[name])
    except ValueError:
        problem = f"the environment variable {name} must be an integer, not {os.environ[name]!r}"
        raise UsageError(f"{problem}; start several processes with torchrun") from None


def _select_backend(device: str, local_rank: int) -> tuple[str, torch.device | None]:
    """Return the backend for gradients and this process's GPU, which becomes the current one; on CPUs, None."""
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return "gloo", None
    num_gpus = torch.cuda.device_count()
    is_shared = os.environ.get(SHARE_GPU) == "1"
    if not num_gpus or (local_rank >= num_gpus and not is_shared):
        problem = f"local rank {local_rank} has no GPU: this machine has {num_gpus}"
        raise UsageError(
            f"{problem}; start at most one process per GPU (--num-gpus, torchrun's --nproc-per-node)"
        )
    gpu = torch.device("cuda", local_rank % num_gpus)
    torch.cuda.set_device(gpu)
    # NCCL does not support two processes on one GPU
    return "gloo" if is_shared else "nccl", gpu


def _store_of_this_launch(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of the store that only this launch of the processes uses.

    Needed as of torch 2.4 to 2.14: torchrun keeps one store when it restarts its processes, and Gloo would read the
    addresses of dead processes from it. Rank 0 therefore generates a prefix and sends it to every rank. A rank writes a
    fresh id under hello/RANK, reads the prefix under welcome/ID, and confirms it; rank 0 repeats until all have
    confirmed, because the first hello that it reads may be from a dead process.
    """
    # Other ranks: say hello under a fresh id, wait for the prefix, confirm it
    if rank:
        my_id = uuid.uuid4().hex
        store.set(f"hello/{rank}", my_id)
        prefix = store.get(f"welcome/{my_id}").decode()
        store.set(f"confirmed/{prefix}/{rank}", "")
        return dist.PrefixStore(prefix, store)
    # Rank 0: answer every hello until all ranks have confirmed this prefix
    prefix = uuid.uuid4().hex
    missing = set(range(1, size))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistError(f"process {min(missing)} did not start within {TIMEOUT}")
        for other_rank in sorted(missing):
            if store.check([f"hello/{other_rank}"]):
                store.set(f"welcome/{store.get(f'hello/{other_rank}').decode()}", prefix)
        missing = {
            other_rank for other_rank in missing if not store.check([f"confirmed/{prefix}/{other_rank}"])
        }
        time.sleep(0.02)
    return dist.PrefixStore(prefix, store)


def _cpu_group() -> Any:
    return (
        dist.new_group(backend="gloo", timeout=TIMEOUT)
        if dist.get_backend() != "gloo"
        else dist.group.WORLD
    )
