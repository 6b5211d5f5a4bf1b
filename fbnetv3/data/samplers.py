"""Samplers of keys (epoch, index): shuffled batches for training, a fixed order for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fbnetv3.utils.random_state import derive_seed

Order = Callable[[torch.Generator], Tensor]
"""Draws the images of an epoch, as many as the dataset has: indices (images,)."""


@dataclass(eq=False)
class EpochSampler(Sampler):
    """Yields every image once per epoch, in an order that depends only on the seed and the epoch.

    If `order` repeats images, their keys are (epoch, index, number of earlier draws), so that each gets an augmentation
    of its own. The batches do not depend on the world size: each process gets its part of every batch.
    """

    length: int  # number of images
    batch_size: int  # over all processes
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    order: Order | None = None  # default: a random permutation of all images
    epoch: int = 0  # set it before each epoch
    first_batch: int = 0  # number of batches to skip, to resume in the middle of the epoch

    def __len__(self) -> int:
        return self.length // self.batch_size * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        # All processes draw the same order
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.order is None:
            order = torch.randperm(self.length, generator=generator)
            return ((self.epoch, index) for index in self._own_part(order))
        order = self.order(generator)
        draws = zip(self._own_part(order), self._own_part(_count_earlier_draws(order)), strict=True)
        return ((self.epoch, index, repeat) if repeat else (self.epoch, index) for index, repeat in draws)

    def _own_part(self, values: Tensor) -> list[int]:
        """Return this process's part of the remaining batches of an epoch, from the values of all images."""
        # (batch, rank, image): each process takes its part of every batch
        batches = self.length // self.batch_size
        by_rank = values[: batches * self.batch_size].view(batches, -1, self.batch_size // self.world_size)
        return by_rank[self.first_batch :, self.rank].flatten().tolist()


def _count_earlier_draws(order: Tensor) -> Tensor:
    """Return for each element how often the same index occurs before it."""
    indices, positions = order.sort(stable=True)
    _, counts = indices.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    earlier = torch.empty_like(order)
    earlier[positions] = torch.arange(len(order)) - starts.repeat_interleave(counts)
    return earlier


class DistributedSequentialSampler(Sampler):
    """Yields every `world_size`-th image in the dataset's order, so that the processes divide the dataset."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.epoch = 0  # only random transforms depend on it
        self.first_image = 0  # number of images to skip

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.indices[self.first_image :])
