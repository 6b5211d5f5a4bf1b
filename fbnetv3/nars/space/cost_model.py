"""The cost of many candidates at once, equal to `fbnetv3.arch.cost_of` for each, whose code says what a block costs."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch import Cost
from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.complexity import avg_pool, conv
from fbnetv3.arch.definition import MAX_RESOLUTION
from fbnetv3.arch.network_cost import check_counts
from fbnetv3.nars.space.block_sums import BlockSums
from fbnetv3.nars.space.search_space import Space

COLUMNS = ("macs", "params", "activations")


class CostModel:
    """Costs of the candidates of a space.

    Args:
        space: has an architecture template.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        SpaceError: the space has no architectures, or a row of the template is none.
    """

    def __init__(self, space: Space, num_classes: int = 1000, in_chans: int = 3) -> None:
        check_counts(num_classes, in_chans)
        self.space, self.num_classes, self.in_chans = space, num_classes, in_chans
        self._sums = BlockSums(space, _of_block, len(COLUMNS), in_chans=in_chans)

    def __call__(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Costs of candidates.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params" and "activations", int64 (N,); all are -1 where a candidate makes no network.
        """
        found = self._sums.total(candidates)
        total = found.sums + self._heads(found.channels, found.side)
        return {column: np.where(found.valid, total[:, i], -1) for i, column in enumerate(COLUMNS)}

    def per_stage(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """What each stage of the template costs; together with pool and classifier, it is the cost of the network.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params", "activations" and "blocks", int64 (N, stages); all are -1 where a candidate makes no
            network.
        """
        total = self._sums.per_stage(candidates)
        return {column: total[:, :, i] for i, column in enumerate((*COLUMNS, "blocks"))}

    def _heads(self, channels: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Cost of pool and classifier, (N, 3)."""
        if not self.num_classes or not len(channels):
            return np.zeros((len(channels), len(COLUMNS)), np.int64)
        place, which = np.unique(channels * (MAX_RESOLUTION + 1) + np.maximum(side, 0), return_inverse=True)
        pairs = [divmod(int(both), MAX_RESOLUTION + 1) for both in place]
        heads = [avg_pool(s, s, c) + conv(1, 1, c, self.num_classes, bias=True) for c, s in pairs]
        return np.array([_columns(head) for head in heads], np.int64)[which]


def _of_block(kind: str, spec: BlockSpec, side: int) -> tuple[int, ...]:
    return _columns(spec.cost(side, side)[0])


def _columns(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, column) for column in COLUMNS)
