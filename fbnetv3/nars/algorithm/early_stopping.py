"""Early stopping: find the first epoch that ranks the candidates as a full evaluation would (Sec. 3.3, Fig. 5)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

MIN_RANK_CORRELATION = 0.92
MIN_CURVES = 5  # with fewer learning curves, a rank correlation says little


def rank_correlations(curves: np.ndarray) -> np.ndarray:
    """Compute Spearman's rank correlation between the accuracies after each epoch and after the last.

    Args:
        curves: learning curves, (N, epochs).

    Returns:
        One correlation per epoch, (epochs,); NaN if all accuracies after that epoch, or after the last, are equal.
    """
    ranks = rankdata(curves, axis=0)
    # Pearson's correlation of the ranks
    centered = ranks - ranks.mean(axis=0)
    last = centered[:, -1:]
    norms = np.sqrt((centered**2).sum(axis=0) * (last**2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centered * last).sum(axis=0) / norms


def stopping_epoch(curves: np.ndarray, min_correlation: float = MIN_RANK_CORRELATION) -> int:
    """Return the first epoch, from 1, whose rank correlation with the last exceeds `min_correlation`.

    It is the last epoch if no earlier one qualifies, or if there are fewer than five `curves`, (N, epochs).
    """
    num_epochs = curves.shape[1]
    if len(curves) < MIN_CURVES:
        return num_epochs
    qualified = np.flatnonzero(rank_correlations(curves) > min_correlation)
    return int(qualified[0]) + 1 if len(qualified) else num_epochs
