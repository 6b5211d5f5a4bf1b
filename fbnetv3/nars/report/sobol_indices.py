"""Sobol indices: the shares of a function's variance that single inputs, and pairs of them, explain.

This is the functional analysis of variance (ANOVA) of I. M. Sobol, "Sensitivity estimates for nonlinear mathematical
models", 1993. The estimators are those of A. Saltelli et al., "Variance based sensitivity analysis of model output",
Computer Physics Communications 181(2), 2010, and of A. Saltelli, "Making best use of model evaluations to compute
sensitivity indices", Computer Physics Communications 145(2), 2002, for pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import qmc


@dataclass(frozen=True)
class SobolIndices:
    """Shares of a function's variance. All are estimates, so small ones may be negative."""

    first: np.ndarray  # explained by each input alone, (inputs,)
    total: np.ndarray  # explained by each input alone or together with others, (inputs,)
    pairs: dict[
        tuple[int, int], float
    ]  # explained by two inputs only together, for the inputs of highest total
    points: np.ndarray  # where the function was evaluated, (N, inputs)
    outputs: np.ndarray  # its outputs there, (N,)


def sobol_indices(
    function: Callable[[np.ndarray], np.ndarray],
    num_inputs: int,
    num_samples: int = 1024,
    num_paired: int = 8,
    seed: int = 0,
) -> SobolIndices:
    """Estimate Sobol indices of a function of independent inputs that are uniform in [0, 1).

    Args:
        function: maps points, (N, inputs), to outputs, (N,).
        num_inputs: number of inputs.
        num_samples: number of points of a quasi-random sequence, a power of 2. The function is evaluated at
            `num_inputs + num_paired + 2` times as many.
        num_paired: number of inputs, those of highest total share, among which pairs are considered.
        seed: random seed.
    """
    sequence = qmc.Sobol(2 * num_inputs, seed=seed).random(num_samples)
    a, b = sequence[:, :num_inputs], sequence[:, num_inputs:]
    # Points of one sample with one input from the other
    mixed = np.stack([_replace_input(a, b, i) for i in range(num_inputs)])
    points = np.concatenate([a[None], b[None], mixed])
    outputs = _evaluate(function, points)
    center = outputs[:2].mean()
    variance = max(float(outputs[:2].var()), 1e-300)
    at_a, at_b = outputs[:2] - center
    at_mixed = outputs[2:] - center
    first = (at_b * (at_mixed - at_a)).mean(1) / variance
    total = 0.5 * np.square(at_mixed - at_a).mean(1) / variance

    # The other sample with one input of the first, for the inputs that matter most
    paired = sorted(np.argsort(-total, kind="stable")[:num_paired].tolist())
    reversed_points = np.stack([_replace_input(b, a, i) for i in paired])
    reversed_outputs = _evaluate(function, reversed_points)
    pairs = {}
    for (row, i), (_, j) in combinations(enumerate(paired), 2):
        closed = ((reversed_outputs[row] - center) * at_mixed[j] - at_a * at_b).mean() / variance
        pairs[i, j] = float(closed - first[i] - first[j])
    points = np.concatenate([points, reversed_points]).reshape(-1, num_inputs)
    return SobolIndices(first, total, pairs, points, np.concatenate([outputs, reversed_outputs]).ravel())


def _replace_input(points: np.ndarray, other: np.ndarray, index: int) -> np.ndarray:
    replaced = points.copy()
    replaced[:, index] = other[:, index]
    return replaced


def _evaluate(function: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
    """Evaluate a function at points, (K, N, inputs), as (K, N)."""
    return np.asarray(function(points.reshape(-1, points.shape[2])), np.float64).reshape(points.shape[:2])
