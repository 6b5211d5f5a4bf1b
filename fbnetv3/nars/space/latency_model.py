"""The latency of many candidates at once, equal to `LatencyTable.of` for each."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.latency_table import BlockShape, LatencyTable, head_shape
from fbnetv3.nars.space.block_sums import BlockSums
from fbnetv3.nars.space.search_space import Space

LATENCY = "latency_ms"


class LatencyModel:
    """Latencies of the candidates of a space on the device of a table.

    Args:
        space: has an architecture template.
        table: has every block that a candidate can have (`tools/measure_net.py --space` sees to it).
        num_classes: outputs of the head.

    Raises:
        SpaceError: the space has no architectures, or a row of the template is none.
    """

    def __init__(self, space: Space, table: LatencyTable, num_classes: int = 1000) -> None:
        self.table, self.num_classes = table, num_classes
        self._sums = BlockSums(space, self._of_block, 1, np.float64)

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Latency in ms, float64 (N,), infinite where a candidate makes no network; candidates are integers (N,
        variables).

        Raises:
            LatencyError: a block was not measured.
        """
        found = self._sums.total(candidates)
        total, blocks = found.sums[:, 0], found.blocks
        if self.num_classes:
            total, blocks = total + self._heads(found.channels, found.side, found.valid), blocks + 1
        return np.where(found.valid, self.table.combined(total, blocks), np.inf)

    def _of_block(self, kind: str, spec: BlockSpec, side: int) -> tuple[float]:
        return (self.table.of_block(BlockShape(kind, spec, side)),)

    def _heads(self, channels: np.ndarray, side: np.ndarray, valid: np.ndarray) -> np.ndarray:
        known = {}
        for c, s in set(zip(channels[valid].tolist(), side[valid].tolist(), strict=True)):
            known[c, s] = self.table.of_block(head_shape(c, self.num_classes, s))
        return np.array([known.get(pair, 0.0) for pair in zip(channels.tolist(), side.tolist(), strict=True)])


def shapes_in(space: Space, num_classes: int = 1000) -> list[BlockShape]:
    """Every block, and every head, that a candidate of a space can have: what a table for it has to hold."""
    sums = BlockSums(space, lambda *_: (0.0,), 1, np.float64)
    blocks = [BlockShape(*block) for block in sums.blocks()]
    return [*blocks, *(head_shape(c, num_classes, s) for c, s in sums.ends())] if num_classes else blocks
