"""Samplers of (epoch, index) pairs: shuffled batches for training, a fixed order for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fbnetv3.utils.random_state import derive_seed


class EpochSampler(Sampler):
    """Yields every image once per epoch, in an order that depends only on seed and epoch.

    The batches do not depend on the world size: each process gets its part of every batch.

    Args:
        length: number of images.
        batch_size: images per batch, over all processes.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.
        order: draws a permutation of all images; default: uniformly.
    """

    epoch: int
    """Set it before each epoch."""
    start: int
    """Number of batches to skip at the beginning of the epoch, to resume in the middle of it."""

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.batches = length // batch_size
        self.seed = seed
        self.rank = rank
        self.part = batch_size // world_size
        self.order = order or (lambda generator: torch.randperm(length, generator=generator))
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.batches * self.part

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # All processes draw the same order
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = self.order(generator)[: self.batches * self.batch_size]
        # (batch, rank, image): each process takes its part of every batch
        by_rank = order.view(self.batches, -1, self.part)
        indices = by_rank[self.start :, self.rank].flatten().tolist()
        return ((self.epoch, index) for index in indices)


class ShardedSampler(Sampler):
    """Yields every `world_size`-th image in the dataset's order, so that the processes share the dataset.

    Args:
        length: number of images.
        rank: rank of this process.
        world_size: number of processes.
    """

    epoch: int
    """Only random transforms depend on it."""
    start: int
    """Number of images to skip at the beginning."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.indices[self.start :])
