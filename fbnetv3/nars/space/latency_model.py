"""Latencies of many candidates at once, each equal to that predicted by the latency table."""

from __future__ import annotations

import numpy as np

from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.arch.latency_table import BlockShape, LatencyTable, head_shape
from fbnetv3.nars.space.block_sums import BlockFunctions, BlockSums
from fbnetv3.nars.space.search_space import Space

LATENCY_COLUMN = "latency_ms"


class LatencyModel:
    """Latencies of the candidates of a space with an architecture template, on the device of a latency table.

    The table has all `possible_shapes` of the space, as measured by `tools/measure_net.py --space`.
    """

    def __init__(self, space: Space, table: LatencyTable, num_classes: int = 1000) -> None:
        def block_latency(block_name: str, spec: BlockSpec, side: int) -> tuple[float]:
            return (table.block_ms(BlockShape(block_name, spec, side)),)

        def head_latency(channels: int, side: int) -> tuple[float]:
            return (table.block_ms(head_shape(channels, num_classes, side)),)

        self.table = table
        head = head_latency if num_classes else None
        functions = BlockFunctions(block_latency, head, 1, np.float64)
        self._sums = BlockSums(space, functions)

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Predict latencies in milliseconds, (N,), of candidates, integers (N, variables).

        They are infinite for candidates that do not form a network.

        Raises:
            LatencyError: a block was not measured.
        """
        sums, num_blocks, valid = self._sums.total(candidates)
        latencies = self.table.predict_from_sum(sums[:, 0, 0], num_blocks[:, 0])
        return np.where(valid, latencies, np.inf)


def possible_shapes(space: Space, num_classes: int = 1000) -> list[BlockShape]:
    """Return every block and head that a candidate of the space can have; a latency table needs them all."""
    unused = BlockFunctions(lambda *_: (0,), None, 1)
    blocks, outputs = BlockSums(space, unused).list_reachable()
    shapes = [BlockShape(*block) for block in blocks]
    if num_classes:
        for channels, side in outputs:
            shapes.append(head_shape(channels, num_classes, side))
    return shapes
