"""What a predictor is trained on: accuracies, with a long tail below made short."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Targets:
    """Accuracies to what the predictor is trained on and back: mean 0, deviation 1, with a long tail below made short.

    Trainings that failed say that a candidate is bad; how bad must not drown what tells good ones apart. Below a floor,
    which lies as far under the median as the best tenth lies above it, accuracies count logarithmically.
    """

    floor: float
    unit: float
    lowest: float
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, accuracies: np.ndarray) -> Targets:
        """The transformation that suits these."""
        median, high = np.quantile(accuracies, [0.5, 0.9])
        unit, floor = float(high - median), float(2 * median - high)
        if unit <= 1e-9 * max(1.0, abs(high)):  # so many are equal that they do not tell what a long tail is
            unit, floor = 1.0, -math.inf
        plain = cls(floor, unit, float(accuracies.min()))
        values = plain.encode(accuracies)
        return replace(plain, mean=float(values.mean()), scale=max(float(values.std()), 1e-12))

    def encode(self, accuracies: np.ndarray) -> np.ndarray:
        below = np.maximum(self.floor - accuracies, 0)
        values = np.where(below > 0, self.floor - self.unit * np.log1p(below / self.unit), accuracies)
        return (values - self.mean) / self.scale

    def decode(self, values: np.ndarray) -> np.ndarray:
        """The opposite; nothing is less than the lowest accuracy that was seen where that lies below the floor."""
        values = values * self.scale + self.mean
        below = np.minimum(np.maximum(self.floor - values, 0) / self.unit, 50.0)
        found = np.where(below > 0, self.floor - self.unit * np.expm1(below), values)
        return np.maximum(found, min(self.lowest, self.floor))
