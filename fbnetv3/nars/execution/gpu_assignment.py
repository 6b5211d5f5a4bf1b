"""Assign the GPUs of this machine to worker processes, by the environment variable CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence

from fbnetv3.errors import FieldError, UsageError
from fbnetv3.utils.checks import check_number

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_ROUNDING = 1e-6  # of shares such as 1/3
_SHARE_STEPS = 10_000  # Ray counts GPUs in steps of 1/10,000


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # only workers with GPUs need it

    count = torch.cuda.device_count()
    names = os.environ.get(VISIBLE_GPUS)
    return [str(index) for index in range(count)] if names is None else names.split(",")[:count]


@contextlib.contextmanager
def no_visible_gpus() -> Iterator[None]:
    """Hide all GPUs from this process within the block, for a Ray task without any.

    Old versions of Ray do so themselves. Newer ones leave all GPUs visible, and all trials would use the first one.
    """
    names = os.environ.get(VISIBLE_GPUS)
    os.environ[VISIBLE_GPUS] = ""
    try:
        yield
    finally:
        # Ray may run other tasks in this process
        del os.environ[VISIBLE_GPUS]
        if names is not None:
            os.environ[VISIBLE_GPUS] = names


def is_assigned(trial_device: str | None) -> bool:
    """Return whether executors assign GPUs to the trials of an evaluator with this `trial_device`."""
    return (trial_device or "").partition(":")[0] in ("auto", "cuda")


def gpus_per_trial(
    trial_device: str | None, num_gpus: float | None, workers: int, gpus: int
) -> float | None:
    """Return the number of GPUs of each trial, less than 1 for a share of one; None if the evaluator sees to that.

    By default a trial on "auto" or "cuda" has a GPU, or the share of one that lets all workers run at a time.

    Args:
        trial_device: the evaluator's `trial_device`; None if it has none.
        num_gpus: the setting `resources.num_gpus`; None if it is not set.
        workers: number of trials that run at a time.
        gpus: number of GPUs that they may use.

    Raises:
        UsageError: trials on "cuda" would have no GPU, or the device has an index.
    """
    if num_gpus is not None:
        check_number(num_gpus, "resources.num_gpus", 0)
    if trial_device == "cpu":
        return num_gpus or 0
    if not is_assigned(trial_device):
        return num_gpus
    if trial_device not in ("auto", "cuda"):
        problem = f"DEVICE {trial_device}: a search assigns the GPUs to its trials"
        raise UsageError(f"{problem}: set it to cuda, and {VISIBLE_GPUS} to the GPUs to use")
    if num_gpus is None:
        num_gpus = largest_share(workers, gpus) if gpus else 0
        problem = "DEVICE cuda: there is no GPU for the trials: set it to auto or cpu"
    else:
        problem = "resources.num_gpus is 0, but DEVICE is cuda: give the trials GPUs, or set DEVICE to cpu"
    if trial_device == "cuda" and not num_gpus:
        raise UsageError(problem)
    return num_gpus


def largest_share(workers: int, gpus: int) -> float:
    """Return the largest share of a GPU, 1 at most, with which all workers fit on the GPUs."""
    workers_per_gpu = math.ceil(workers / gpus)
    return math.floor(_SHARE_STEPS / workers_per_gpu) / _SHARE_STEPS


def count_sharing(num_gpus: float) -> int:
    """Return how many workers that need this share of a GPU fit on one."""
    return int(1 / num_gpus + _ROUNDING)


def assign_gpus(workers: int, num_gpus: float, gpus: Sequence[str]) -> list[str]:
    """Return the value of CUDA_VISIBLE_DEVICES for each worker.

    Args:
        workers: number of workers.
        num_gpus: number of GPUs of each worker; if less than 1, workers share GPUs; 0 hides all of them.
        gpus: GPUs that may be used.

    Raises:
        UsageError: `num_gpus` is neither an integer nor less than 1, or there are too few GPUs.
    """
    if not num_gpus:
        return [""] * workers
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise FieldError(f"{num_gpus:g} must be an integer, or less than 1", "resources.num_gpus")
    sharing = count_sharing(num_gpus) if num_gpus < 1 else 1
    gpus_per_worker = max(1, int(num_gpus))
    capacity = len(gpus) // gpus_per_worker * sharing
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
    return [slots[worker % (capacity // sharing)] for worker in range(workers)]
