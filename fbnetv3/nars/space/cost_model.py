"""Costs of many candidates at once, each equal to that of `compute_cost`."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch import Cost
from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.layer_cost import avg_pool_cost, conv_cost
from fbnetv3.nars.space.block_sums import BlockFunctions, BlockSums
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_int

COST_COLUMNS = ("macs", "params", "activations")


class CostModel:
    """Costs of the candidates of a space with an architecture template.

    With 0 for `num_classes`, networks have no head. Their input has `in_chans` channels.
    """

    def __init__(self, space: Space, num_classes: int = 1000, in_chans: int = 3) -> None:
        check_int(num_classes, "num_classes", 0)
        check_int(in_chans, "in_chans", 1)

        def head_cost(channels: int, side: int) -> tuple[int, ...]:
            pool = avg_pool_cost(side, side, channels)
            return _to_columns(pool + conv_cost(1, 1, channels, num_classes, bias=True))

        head = head_cost if num_classes else None
        functions = BlockFunctions(_block_cost, head, len(COST_COLUMNS))
        self._sums = BlockSums(space, functions, in_chans)

    def __call__(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Compute "macs", "params" and "activations", int64 (N,), of candidates, integers (N, variables).

        They are -1 for candidates that do not form a network.
        """
        sums, _, valid = self._sums.total(candidates)
        costs = np.where(valid[:, None], sums[:, 0], -1)
        return dict(zip(COST_COLUMNS, costs.T, strict=True))

    def per_stage(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Compute these and "blocks" for each stage of the template, int64 (N, stages), without the head."""
        sums, num_blocks, valid = self._sums.total(candidates, by_stage=True)
        costs = dict(zip(COST_COLUMNS, np.moveaxis(sums, -1, 0), strict=True))
        costs["blocks"] = num_blocks
        return {column: np.where(valid[:, None], values, -1) for column, values in costs.items()}


def _block_cost(block_name: str, spec: BlockSpec, side: int) -> tuple[int, ...]:
    cost, _, _ = spec.cost(side, side)
    return _to_columns(cost)


def _to_columns(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, column) for column in COST_COLUMNS)
