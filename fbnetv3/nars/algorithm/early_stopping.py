"""When a training has gone far enough to tell which candidate is better (Sec. 3.3, Fig. 5)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

THRESHOLD = 0.92
# Of fewer curves than this a rank correlation says nothing.
_LEAST = 5


def rank_correlations(curves: np.ndarray) -> np.ndarray:
    """Spearman's correlation between the accuracies after each epoch and those after the last.

    Args:
        curves: (N, epochs).

    Returns:
        (epochs,); not a number where all accuracies are equal.
    """
    ranks = rankdata(np.asarray(curves, np.float64), axis=0)
    ranks -= ranks.mean(0)
    lengths = np.sqrt((ranks**2).sum(0) * (ranks[:, -1] ** 2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks * ranks[:, -1:]).sum(0) / lengths


def stopping_epoch(curves: np.ndarray, threshold: float = THRESHOLD) -> int:
    """The first epoch whose accuracies rank the candidates nearly as the last one's do.

    Args:
        curves: of the first round, (N, epochs).
        threshold: what the rank correlation has to exceed.

    Returns:
        From 1; the last one if no other will do, or if there are fewer than five curves.
    """
    curves = np.asarray(curves, np.float64)
    if len(curves) < _LEAST:
        return curves.shape[1]
    above = np.flatnonzero(rank_correlations(curves) > threshold)
    return int(above[0]) + 1 if len(above) else curves.shape[1]
