"""How many processes load images if the config leaves it open (DATA.WORKERS auto)."""

from __future__ import annotations

import os

AUTO = "auto"

# Each process keeps two batches in shared memory: 1.2 GB for 16 of them at 224 pixels and batch 256
_MAX_WORKERS = 16


def choose_workers(num_cpus: int, num_processes: int, on_gpu: bool) -> int:
    """Return how many processes should load images for each training process.

    The training processes of a machine share its CPUs equally, and each keeps one for itself: to launch a GPU's
    kernels, or to compute. The others read, but at most 16. If no CPU is left, a CPU's process reads its images itself,
    which costs no more; for a GPU, one process reads all the same, so that its kernels do not wait for the images.

    Args:
        num_cpus: number of CPUs on which this process may run.
        num_processes: number of training processes on this machine.
        on_gpu: whether the images are for a GPU.
    """
    spare_cpus = num_cpus // num_processes - 1
    return min(max(spare_cpus, 1 if on_gpu else 0), _MAX_WORKERS)


def available_cpus() -> int:
    """Return on how many CPUs this process may run, which a scheduler or a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


def processes_of_machine() -> int:
    """Return how many training processes torchrun or `--num-gpus` has started on this machine; otherwise 1.

    A scheduler that starts them itself also gives each its own CPUs.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1


def resolve_workers(setting: int | str, on_gpu: bool) -> int:
    """Return the number of processes that DATA.WORKERS asks for; see `choose_workers` for "auto"."""
    if setting != AUTO:
        return int(setting)
    return choose_workers(available_cpus(), processes_of_machine(), on_gpu)
