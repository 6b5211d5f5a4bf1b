"""The difference between two computations of the same logits."""

from __future__ import annotations

import numpy as np


def relative_difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of logits (N, classes), relative to the image's largest expected logit.

    It is NaN if any logit is NaN.
    """
    # Images whose logits are all 0 are compared absolutely
    scale = np.abs(expected).max(axis=1, keepdims=True)
    return float((np.abs(logits - expected) / np.where(scale == 0, 1, scale)).max())
