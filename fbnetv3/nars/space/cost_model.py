"""Costs of many candidates at once, equal to `fbnetv3.arch.compute_cost` of each."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch import Cost
from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.definition import MAX_RESOLUTION
from fbnetv3.arch.layer_cost import avg_pool_cost, conv_cost
from fbnetv3.nars.space.block_sums import BlockSums
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_int

COST_COLUMNS = ("macs", "params", "activations")


class CostModel:
    """Costs of the candidates of a space.

    Args:
        space: a space with an architecture template.
        num_classes: outputs of the head; 0 for networks without one.
        in_chans: channels of the input.

    Raises:
        SpaceError: the space has no architecture template.
    """

    def __init__(self, space: Space, num_classes: int = 1000, in_chans: int = 3) -> None:
        check_int(num_classes, "num_classes", 0)
        check_int(in_chans, "in_chans", 1)
        self.space = space
        self.num_classes = num_classes
        self.in_chans = in_chans
        self._sums = BlockSums(space, _block_cost, len(COST_COLUMNS), in_chans=in_chans)

    def __call__(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the costs of candidates.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params" and "activations", int64 (N,); -1 for candidates that do not form a network.
        """
        totals = self._sums.total(candidates)
        costs = totals.sums + self._head_costs(totals.channels, totals.side)
        # Invalid candidates have no cost
        costs[~totals.valid] = -1
        return {column: costs[:, i] for i, column in enumerate(COST_COLUMNS)}

    def per_stage(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the costs of each stage of the template, without the head.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params", "activations" and "blocks", int64 (N, stages); -1 for candidates that do not form a
            network.
        """
        sums = self._sums.per_stage(candidates)
        return {column: sums[:, :, i] for i, column in enumerate((*COST_COLUMNS, "blocks"))}

    def _head_costs(self, channels: np.ndarray, side: np.ndarray) -> np.ndarray:
        """Return the costs of pooling and classifier, (N, 3), for the last block's output channels and sides, (N,)."""
        if not self.num_classes or not len(channels):
            return np.zeros((len(channels), len(COST_COLUMNS)), np.int64)
        # One key per (channels, side), of which there are few; sides of invalid candidates may be negative
        base = MAX_RESOLUTION + 1
        keys, indices = np.unique(channels * base + np.maximum(side, 0), return_inverse=True)
        heads = []
        for last_channels, last_side in (divmod(key, base) for key in keys.tolist()):
            pool = avg_pool_cost(last_side, last_side, last_channels)
            heads.append(pool + conv_cost(1, 1, last_channels, self.num_classes, bias=True))
        return np.array([_to_columns(head) for head in heads], np.int64)[indices]


def _block_cost(kind: str, spec: BlockSpec, side: int) -> tuple[int, ...]:
    cost, _, _ = spec.cost(side, side)
    return _to_columns(cost)


def _to_columns(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, column) for column in COST_COLUMNS)
