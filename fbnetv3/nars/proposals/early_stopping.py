"""Early stopping: find the first epoch that ranks the candidates as a full evaluation would (Sec. 3.3, Fig. 5)."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm, rankdata

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


def stopping_epoch(
    curves: np.ndarray, min_correlation: float = MIN_RANK_CORRELATION, confidence: float | None = None
) -> int:
    """Return the first epoch, from 1, whose rank correlation with the last exceeds `min_correlation`.

    It is the last epoch if no earlier one qualifies, or if there are fewer than five `curves`, (N, epochs). With
    `confidence`, such as 0.95, the correlation must exceed the threshold with this probability, so that a few curves
    that happen to agree do not choose an epoch. The bound is that of E. C. Fieller, H. O. Hartley and E. S. Pearson,
    "Tests for Rank Correlation Coefficients. I", Biometrika 44, 1957: the inverse hyperbolic tangent of Spearman's
    correlation is about normal with variance 1.06 / (N - 3).
    """
    num_curves, num_epochs = curves.shape
    if num_curves < MIN_CURVES:
        return num_epochs
    correlations = rank_correlations(curves)
    if confidence is not None:
        margin = norm.ppf(confidence) * math.sqrt(1.06 / (num_curves - 3))
        # A correlation of 1 is no proof either: as if one more pair of neighbors had changed places
        highest = 1 - 12 / (num_curves**3 - num_curves)
        correlations = np.tanh(np.arctanh(np.minimum(correlations, highest)) - margin)
    qualified = np.flatnonzero(correlations > min_correlation)
    return int(qualified[0]) + 1 if len(qualified) else num_epochs
