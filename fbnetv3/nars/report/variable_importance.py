"""Importance of variables according to a predictor: shares of its variance, and its mean over each variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fbnetv3.nars.report.sobol_indices import SobolIndices, sobol_indices
from fbnetv3.nars.space.search_space import Space

_EVALUATIONS = 32_768  # of the predictor, at most
_MAX_SAMPLES = 2048
_MAX_BINS = 24  # values of a variable at which its mean is shown
_MAX_PAIRS = 10


def measure_importance(
    predict: Callable[[np.ndarray], np.ndarray], space: Space, seed: int = 0
) -> dict[str, Any]:
    """Measure how much each variable, and each pair, changes the prediction over the whole space.

    Constraints are ignored, as shares of variance need independent variables.

    Args:
        predict: predicts the values of candidates, integers (N, variables), as (N,).
        space: the search space.
        seed: random seed.

    Returns:
        JSON data. "variables" has, for each variable, its name, its "first" order share, its "total" share that
        includes what it explains only with others, and "marginal": the mean prediction at some of its values, given by
        their indices. "pairs" has the names and the shares of the pairs that explain most, beyond their variables.
    """
    varying = np.flatnonzero(space.sizes > 1)
    if not len(varying):
        return {"variables": [], "pairs": []}

    def to_candidates(points: np.ndarray) -> np.ndarray:
        full = np.full((len(points), len(space)), 0.5)
        full[:, varying] = points
        return space.from_unit(full)

    num_paired = min(8, len(varying))
    num_samples = min(_MAX_SAMPLES, 2 ** int(np.log2(_EVALUATIONS / (len(varying) + num_paired + 2))))
    indices = sobol_indices(
        lambda points: predict(to_candidates(points)), len(varying), num_samples, num_paired, seed
    )
    candidates = to_candidates(indices.points)
    active = space.active(candidates)
    variables = [
        {
            "name": space.variables[index].name,
            "first": max(0.0, float(indices.first[position])),
            "total": float(indices.total[position]),
            "marginal": _marginal_means(candidates[:, index], indices.outputs, active[:, index]),
        }
        for position, index in enumerate(varying)
    ]
    names = [space.variables[index].name for index in varying]
    return {"variables": variables, "pairs": _list_pairs(indices, names)}


def _list_pairs(indices: SobolIndices, names: list[str]) -> list[dict[str, Any]]:
    shares = sorted(indices.pairs.items(), key=lambda item: -item[1])[:_MAX_PAIRS]
    return [{"names": [names[i], names[j]], "share": share} for (i, j), share in shares if share > 0]


def _marginal_means(values: np.ndarray, outputs: np.ndarray, active: np.ndarray) -> dict[str, list[float]]:
    """Return the mean output at the values of a variable where it is active, in bins if there are many values."""
    values, outputs = values[active], outputs[active]
    distinct, positions = np.unique(values, return_inverse=True)
    if len(distinct) > _MAX_BINS:
        # Quantiles, as variables on a log scale have few values at one end
        edges = np.quantile(values, np.linspace(0, 1, _MAX_BINS + 1)[1:-1])
        positions = np.searchsorted(np.unique(edges), values, side="right")
    counts = np.bincount(positions)
    used = counts > 0
    centers = np.bincount(positions, values)[used] / counts[used]
    means = np.bincount(positions, outputs)[used] / counts[used]
    return {"indices": centers.round().tolist(), "means": means.tolist()}
