"""Transform of the accuracies that the predictor is trained on: standardized, with a shortened lower tail."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class AccuracyTransform:
    """Invertible map from accuracies to values with mean 0, deviation 1 and a short lower tail.

    A failed training run shows that a candidate is bad, but how bad it is must not mask the differences between good
    ones. Accuracies below a floor count logarithmically. The floor is as far below the median as the 90th percentile
    is above it.
    """

    floor: float  # accuracy below which the scale is logarithmic
    unit: float  # scale of the logarithm, in units of accuracy
    lowest: float  # lowest accuracy of the trials
    mean: float = 0.0  # mean of the shortened accuracies
    scale: float = 1.0  # standard deviation of the shortened accuracies

    @classmethod
    def fit(cls, accuracies: np.ndarray) -> AccuracyTransform:
        """Fit the transform to the accuracies of all trials."""
        median, high = np.quantile(accuracies, [0.5, 0.9])
        unit = float(high - median)
        floor = float(2 * median - high)
        if unit <= 1e-9 * max(1.0, abs(high)):  # most accuracies are equal and do not show a tail
            unit = 1.0
            floor = -math.inf
        # Measure mean and deviation of the shortened accuracies
        unscaled = cls(floor, unit, float(accuracies.min()))
        values = unscaled.transform(accuracies)
        return replace(unscaled, mean=float(values.mean()), scale=max(float(values.std()), 1e-12))

    def transform(self, accuracies: np.ndarray) -> np.ndarray:
        """Map accuracies to transformed values."""
        below = np.maximum(self.floor - accuracies, 0)
        shortened = np.where(below > 0, self.floor - self.unit * np.log1p(below / self.unit), accuracies)
        return (shortened - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Map transformed values to accuracies, at least the lowest accuracy of the trials or the floor."""
        shortened = values * self.scale + self.mean
        below = np.minimum(np.maximum(self.floor - shortened, 0) / self.unit, 50.0)
        accuracies = np.where(below > 0, self.floor - self.unit * np.expm1(below), shortened)
        return np.maximum(accuracies, min(self.lowest, self.floor))
