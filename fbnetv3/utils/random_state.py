"""Random numbers: derived seeds, and seeding that is undone at the end of a block."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(*numbers: int) -> int:
    """Hash several integers, such as seed, epoch and index, into one seed in [0, 2^63)."""
    # Constants of splitmix64
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
        mixed ^= mixed >> 29
    return mixed


@contextlib.contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random state at the end of the block: that of the CPU and, if `device` is a GPU, its own.

    Other GPUs are left alone; with a CPU, CUDA is not even started.
    """
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_device(seed: int, device: torch.device) -> None:
    """Seed what `forked_random_state` restores; `torch.manual_seed` would also seed all other GPUs."""
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator within the block and restore its state afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed also seeds every accelerator, which costs half a millisecond
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generator within the block and restore their states afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeded_torch(seed):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
