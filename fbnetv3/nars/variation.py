"""How candidates vary: children of a generation, exchanges of two variables, and shocks that leave a neighbourhood."""

from __future__ import annotations

import numpy as np

# The paper's k1 to k4 (Srinivas and Patnaik): crossover and mutation of what is better than the average, and of what
# is not.
_CROSSOVER, _MUTATION = 1.0, 0.5
# Single changes that are paired with each other, those of the largest effect, and pairs looked at for each wanted.
_PAIRED, _PER_WANTED = 600, 10


def children_of(
    parents: np.ndarray, scores: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Children of every parent, by crossover with another and by mutation, at rates that adapt to their fitness.

    Args:
        parents: integers (N, variables).
        scores: of each, (N,).
        sizes: values of each variable.
        count: children of each.
        rng: of all chances.

    Returns:
        Integers (N * count, variables).
    """
    first = np.repeat(np.arange(len(parents)), count)
    second = rng.integers(len(parents), size=len(first))
    top, mean = scores.max(), scores.mean()
    spread = max(top - mean, 1e-12)

    def rate(fitness: np.ndarray, most: float) -> np.ndarray:
        return np.where(fitness >= mean, most * (top - fitness) / spread, most)

    crossed = rng.random(len(first)) < rate(np.maximum(scores[first], scores[second]), _CROSSOVER)
    mixed = (rng.random((len(first), len(sizes))) < 0.5) & crossed[:, None]
    children = np.where(mixed, parents[second], parents[first])
    # at least one variable of each child changes in the mean, so that the best one has neighbours too
    mutation = np.maximum(rate(scores[first], _MUTATION), 1 / len(sizes))
    changed = rng.random(children.shape) < mutation[:, None] * rng.random((len(first), 1))
    changed[np.arange(len(first)), rng.integers(len(sizes), size=len(first))] |= ~crossed
    near = children + rng.choice([-1, 1], children.shape)
    anywhere = rng.integers(0, sizes, children.shape)
    mutated = np.where(rng.random(children.shape) < 0.5, near, anywhere) % sizes
    return np.where(changed, mutated, children)


def effects(candidates: np.ndarray, scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What each value of each variable adds to the score, by a ridge regression, (sum of sizes,)."""
    starts = np.cumsum(sizes) - sizes
    design = np.zeros((len(candidates), int(sizes.sum())))
    np.put_along_axis(design, candidates + starts, 1.0, 1)
    design -= design.mean(0)
    return np.linalg.solve(design.T @ design + np.eye(design.shape[1]), design.T @ (scores - scores.mean()))


def exchanges(candidate: np.ndarray, added: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """What differs from a candidate in one variable, and the most promising that differ in two.

    Inside a budget, a variable can often gain only what another gives up, so that one change alone leads nowhere.

    Args:
        candidate: integers (variables,).
        added: `effects`.
        sizes: values of each variable.
        count: how many will be kept in the end; ten times as many pairs are given, since some break constraints.

    Returns:
        Integers (N, variables): all of one change, then those of two, the most promising first.
    """
    starts = np.cumsum(sizes) - sizes
    columns = np.repeat(np.arange(len(sizes)), sizes)
    values = np.arange(int(sizes.sum())) - starts[columns]
    gains = added - added[starts + candidate][columns]
    changes = np.flatnonzero(values != candidate[columns])
    single = np.repeat(candidate[None], len(changes), 0)
    single[np.arange(len(changes)), columns[changes]] = values[changes]
    paired = changes[np.argsort(-gains[changes], kind="stable")[:_PAIRED]]
    first, second = (paired[side] for side in np.triu_indices(len(paired), 1))
    apart = columns[first] != columns[second]
    first, second = first[apart], second[apart]
    best = np.argsort(-(gains[first] + gains[second]), kind="stable")[: count * _PER_WANTED]
    double = np.repeat(candidate[None], len(best), 0)
    for side in (first[best], second[best]):
        double[np.arange(len(best)), columns[side]] = values[side]
    return np.concatenate([single, double])


def shocked(candidates: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Candidates, so many of them anew at random, with a fifth of their variables (two at least) anywhere."""
    found = candidates[rng.integers(len(candidates), size=count)]
    changed = min(len(sizes), max(2, round(len(sizes) / 5)))
    columns = rng.random(found.shape).argsort(1)[:, :changed]
    np.put_along_axis(found, columns, rng.integers(0, sizes[columns]), 1)
    return found
