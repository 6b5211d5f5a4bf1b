"""What the quantizers of all formats share: which layers stay float32, and where hard activations saturate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HARD_SWISH_RANGE = (-3.0, None)
"""Inputs below the first value all give 0; above there is no limit."""
HARD_SIGMOID_RANGE = (-3.0, 3.0)
"""Inputs outside these values give 0 or 1."""


def count_float_layers(weight_counts: Sequence[int], max_share: float) -> int:
    """Return how many of a network's first layers stay float32: those that hold at most a share of all weights.

    They work on the largest feature maps with the fewest channels. Rounding does the most harm there, float32 weights
    take little space, and where quantizing the maps costs more time than integer products save, float32 is faster too.

    Args:
        weight_counts: number of weights of each layer, in the network's order.
        max_share: share of their sum.
    """
    return int((np.cumsum(weight_counts) <= max_share * sum(weight_counts)).sum())
