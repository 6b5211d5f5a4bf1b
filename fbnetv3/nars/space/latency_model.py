"""Latencies of many candidates at once, equal to those that a latency table predicts for each."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.latency_table import BlockShape, LatencyTable, head_shape
from fbnetv3.nars.space.block_sums import BlockFunction, BlockSums
from fbnetv3.nars.space.search_space import Space

LATENCY_COLUMN = "latency_ms"


class LatencyModel:
    """Latencies of the candidates of a space on the device of a latency table.

    Args:
        space: a space with an architecture template.
        table: latencies of all `possible_shapes` of the space, as measured by `tools/measure_net.py --space`.
        num_classes: outputs of the head; 0 for networks without one.
    """

    def __init__(self, space: Space, table: LatencyTable, num_classes: int = 1000) -> None:
        self.table = table
        self.num_classes = num_classes
        self._sums = BlockSums(space, BlockFunction(self._block_latency, 1, np.float64))

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Predict the latencies of candidates, integers (N, variables), in ms, (N,).

        They are infinite for candidates that do not form a network; LatencyError if a block was not measured.
        """
        totals = self._sums.total(candidates)
        latencies = totals.sums[:, 0, 0]
        num_blocks = totals.num_blocks[:, 0]
        if self.num_classes:
            latencies = latencies + totals.head_values(self._head_latency)[:, 0]
            num_blocks = num_blocks + 1
        return np.where(totals.valid, self.table.combine(latencies, num_blocks), np.inf)

    def _block_latency(self, kind: str, spec: BlockSpec, side: int) -> tuple[float]:
        return (self.table.block_ms(BlockShape(kind, spec, side)),)

    def _head_latency(self, channels: int, side: int) -> tuple[float]:
        return (self.table.block_ms(head_shape(channels, self.num_classes, side)),)


def possible_shapes(space: Space, num_classes: int = 1000) -> list[BlockShape]:
    """Return every block and head that a candidate of the space can have, all of which a latency table needs."""
    sums = BlockSums(space, BlockFunction(lambda *_: (0.0,), 1, np.float64))
    blocks, outputs = sums.reachable()
    shapes = [BlockShape(*block) for block in blocks]
    if num_classes:
        shapes += [head_shape(channels, num_classes, side) for channels, side in sorted(outputs)]
    return shapes
