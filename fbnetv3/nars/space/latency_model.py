"""Latencies of many candidates at once, equal to those that a latency table predicts for each."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.latency_table import BlockShape, LatencyTable, head_shape
from fbnetv3.nars.space.block_sums import BlockSums
from fbnetv3.nars.space.search_space import Space

LATENCY_COLUMN = "latency_ms"


class LatencyModel:
    """Latencies of the candidates of a space on the device of a latency table.

    Args:
        space: a space with an architecture template.
        table: latencies of all `possible_shapes` of the space, as measured by `tools/measure_net.py --space`.
        num_classes: outputs of the head; 0 for networks without one.

    Raises:
        SpaceError: the space has no architecture template.
    """

    def __init__(self, space: Space, table: LatencyTable, num_classes: int = 1000) -> None:
        self.table = table
        self.num_classes = num_classes
        self._sums = BlockSums(space, self._block_latency, 1, np.float64)

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Predict the latencies of candidates, integers (N, variables).

        Returns:
            Milliseconds, float64 (N,); infinite for candidates that do not form a network.

        Raises:
            LatencyError: a block was not measured.
        """
        # Blocks, then the head
        totals = self._sums.total(candidates)
        latencies = totals.sums[:, 0]
        num_blocks = totals.num_blocks
        if self.num_classes:
            latencies = latencies + self._head_latencies(totals.channels, totals.side, totals.valid)
            num_blocks = num_blocks + 1
        return np.where(totals.valid, self.table.combine(latencies, num_blocks), np.inf)

    def _block_latency(self, kind: str, spec: BlockSpec, side: int) -> tuple[float]:
        return (self.table.block_ms(BlockShape(kind, spec, side)),)

    def _head_latencies(self, channels: np.ndarray, side: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return the latency of the head for the last block's output channels and sides; 0 for invalid candidates."""
        # Few distinct outputs occur
        latencies = {}
        for c, s in set(zip(channels[valid].tolist(), side[valid].tolist(), strict=True)):
            latencies[c, s] = self.table.block_ms(head_shape(c, self.num_classes, s))
        return np.array([latencies.get(shape, 0.0) for shape in zip(channels.tolist(), side.tolist(), strict=True)])


def possible_shapes(space: Space, num_classes: int = 1000) -> list[BlockShape]:
    """Return every block and head that a candidate of the space can have, all of which a latency table needs."""
    sums = BlockSums(space, lambda *_: (0.0,), 1, np.float64)
    blocks = [BlockShape(*block) for block in sums.possible_blocks()]
    if not num_classes:
        return blocks
    return blocks + [head_shape(channels, num_classes, side) for channels, side in sums.possible_outputs()]
