"""Several measured objectives, such as accuracy and latency: Pareto sets, and a search that spreads over them.

For each proposal, the objectives are combined with other random weights, and the search goes on as if this combination
were the only objective (J. Knowles, "ParEGO: a hybrid algorithm with on-line landscape approximation for expensive
multiobjective optimization problems", IEEE Transactions on Evolutionary Computation 10(1), 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fbnetv3.nars.proposals.sequential_search import SequentialSearch
from fbnetv3.nars.trials.history import History
from fbnetv3.nars.trials.trial_store import Proposal, Trial

# Weight of the sum beside the worst of the weighted objectives, so that gains of any objective count
_SUM_WEIGHT = 0.05


def pareto_indices(values: np.ndarray) -> np.ndarray:
    """Return the rows of values, (N, objectives), higher is better, that no other row exceeds, best first value first.

    Of equal rows, the first counts.
    """
    order = np.lexsort((np.arange(len(values)), *(-values.T[::-1])))
    front: list[int] = []
    for index in order:
        if not any(np.all(values[other] >= values[index]) for other in front):
            front.append(int(index))
    return np.array(front, np.int64)


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume below some of the values, (N, objectives), and above a reference point, (objectives,).

    Higher values are better; values that do not exceed the reference point add nothing. The time grows exponentially
    with the number of objectives.
    """
    gains = np.maximum(np.asarray(values, np.float64) - reference, 0)
    return _box_union(gains[np.all(gains > 0, axis=1)])


def _box_union(corners: np.ndarray) -> float:
    """Return the volume of the union of boxes from the origin to corners, (N, dimensions)."""
    if not len(corners):
        return 0.0
    if corners.shape[1] == 1:
        return float(corners.max())
    # Slices between consecutive values of the last dimension
    corners = corners[np.argsort(-corners[:, -1], kind="stable")]
    heights = corners[:, -1] - np.append(corners[1:, -1], 0)
    return sum(
        float(height) * _box_union(corners[: count + 1, :-1])
        for count, height in enumerate(heights)
        if height > 0
    )


def objective_values(trials: Sequence[Trial], signs: Sequence[float]) -> np.ndarray:
    """Return the objectives of completed trials, (N, objectives), with signs that make higher values better."""
    rows = [(trial.curve[-1], *trial.objectives.values()) for trial in trials]
    return np.array(rows, np.float64).reshape(-1, len(signs)) * np.asarray(signs)


@dataclass(frozen=True)
class MultiObjectiveSearch:
    """Proposes trials for several objectives by a sequential search for random combinations of them."""

    search: SequentialSearch  # for one objective, to be maximized, without early stopping
    signs: tuple[float, ...]  # for each objective, -1 if lower values are better

    def num_required(self, number: int) -> int:
        """Return how many of the first segments must have ended before segment `number` is proposed."""
        return self.search.num_required(number)

    def propose(self, history: History) -> list[Proposal]:
        """Return what to run next; nothing if the budget is spent or no candidate is left."""
        rng = np.random.default_rng([self.search.seed, history.num_segments, len(self.signs)])
        weights = rng.dirichlet(np.ones(len(self.signs)))
        combined = iter(combine_objectives(objective_values(history.completed, self.signs), weights))
        trials = tuple(
            replace(trial, curve=(float(next(combined)),) * history.epochs)
            if len(trial.curve) == history.epochs
            else trial
            for trial in history.trials
        )
        proposals = self.search.propose(replace(history, trials=trials))
        # Predictions are of the combination, which means nothing to the user
        return [replace(proposal, predicted=None, predicted_std=None) for proposal in proposals]


def combine_objectives(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Combine objectives, (N, objectives), into one value for each row: the worst weighted one, and a little of all.

    Objectives are scaled to the range of the Pareto set, so that the rest of the trials does not distort it.
    """
    if not len(values):
        return np.zeros(0)
    best = values[pareto_indices(values)]
    low, high = best.min(0), best.max(0)
    spread = np.where(high > low, high - low, np.maximum(np.ptp(values, axis=0), 1e-12))
    losses = weights * (high - values) / spread
    return -losses.max(1) - _SUM_WEIGHT * losses.sum(1)
