"""Assign the GPUs of this machine to worker processes, by the environment variable CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fbnetv3.errors import FieldError, UsageError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_ROUNDING = 1e-6  # of shares such as 1/3


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # only workers with GPUs need it

    count = torch.cuda.device_count()
    names = os.environ.get(VISIBLE_GPUS)
    return [str(index) for index in range(count)] if names is None else names.split(",")[:count]


def assign_gpus(workers: int, num_gpus: float, gpus: Sequence[str]) -> list[str]:
    """Return the value of CUDA_VISIBLE_DEVICES for each worker.

    Args:
        workers: number of workers.
        num_gpus: number of GPUs of each worker, more than 0; if less than 1, workers share GPUs.
        gpus: GPUs that may be used.

    Raises:
        UsageError: `num_gpus` is neither an integer nor less than 1, or there are too few GPUs.
    """
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise FieldError(f"{num_gpus:g} must be an integer, or less than 1", "resources.num_gpus")
    workers_per_gpu = int(1 / num_gpus + _ROUNDING) if num_gpus < 1 else 1
    gpus_per_worker = max(1, int(num_gpus))
    capacity = len(gpus) // gpus_per_worker * workers_per_gpu
    if workers > capacity:
        advice = f"set workers to {capacity} at most" if capacity else "set resources.num_gpus to 0"
        raise UsageError(
            f"resources: {workers} workers with num_gpus {num_gpus:g} do not fit on {len(gpus)} visible GPUs "
            f"({', '.join(gpus) or 'none'}): {advice}"
        )
    # Workers that share GPUs are spread over all of them
    slots = [
        ",".join(gpus[start : start + gpus_per_worker]) for start in range(0, len(gpus), gpus_per_worker)
    ]
    return [slots[worker % (capacity // workers_per_gpu)] for worker in range(workers)]
