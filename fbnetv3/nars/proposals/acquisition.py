"""Acquisition functions: how much a candidate is worth trying, given the posterior of its value."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx, ndtr

from fbnetv3.nars.predictor.gaussian_process import ValuePrediction

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# Beyond so many deviations below the best value, the expected improvement is too small to compute even as a logarithm
_MIN_DEVIATIONS = -1e6


def upper_confidence_bound(prediction: ValuePrediction, kappa: float) -> np.ndarray:
    """Return mean plus `kappa` standard deviations, (N,)."""
    return prediction.mean + kappa * prediction.std


def log_expected_improvement(prediction: ValuePrediction, best: float) -> np.ndarray:
    """Return the logarithm of the expected improvement over the value `best`, (N,).

    Unlike the improvement itself, it does not underflow where all candidates are expected to be worse (S. Ament and
    others, "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023).
    """
    deviations = np.maximum((prediction.mean - best) / prediction.std, _MIN_DEVIATIONS)
    # In units of the standard deviation, the improvement is density(z) + z * probability(z); for negative z, both
    # underflow, but not the ratio of probability and density
    positive = np.maximum(deviations, 0)
    negative = np.minimum(deviations, 0)
    ratio = math.sqrt(math.pi / 2) * erfcx(-negative / math.sqrt(2))
    log_improvement = np.where(
        deviations > 0,
        np.log(np.exp(_log_density(positive)) + positive * ndtr(positive)),
        _log_density(negative) + np.log1p(negative * ratio),
    )
    return log_improvement + np.log(prediction.std)


def _log_density(deviations: np.ndarray) -> np.ndarray:
    return -0.5 * deviations**2 - _LOG_SQRT_2PI
