"""How candidates vary: children of a generation, exchanges of a few variables, shocks; and which look worth a score."""

from __future__ import annotations

import numpy as np

# The paper's k1 to k4 (Srinivas and Patnaik): crossover and mutation of what is better than the average, and of what
# is not.
_CROSSOVER, _MUTATION = 1.0, 0.5
# Single changes that are paired with each other, those of the largest effect.
_PAIRED = 600
# Variables whose products a regression has, at most; and how strongly its weights are held to zero.
_PRODUCTS, _SHRINKAGE = 40, 0.01


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


class Regression:
    """A quick guess of scores, fitted to those that are known: quadratic in what each value adds by itself.

    It costs little beside a predictor's score, and so tells which of many candidates are worth one.

    Args:
        candidates: integers (N, variables).
        scores: of each, (N,).
        sizes: values of each variable.

    Attributes:
        added: what each value of each variable adds to the score by itself, (sum of sizes,).
    """

    def __init__(self, candidates: np.ndarray, scores: np.ndarray, sizes: np.ndarray) -> None:
        self._starts = np.cumsum(sizes) - sizes
        mean = scores.mean()
        design = np.zeros((len(candidates), int(sizes.sum())), np.float32)
        np.put_along_axis(design, candidates + self._starts, 1.0, 1)
        self.added = _ridge(design - design.mean(0), scores - mean, 1.0)
        adding = self.added[candidates + self._starts]
        self._centre, self._spread = adding.mean(0), adding.std(0) + 1e-9
        # products of all variables of a large space would be too many: those that matter most
        self._paired = np.sort(np.argsort(-self._spread, kind="stable")[:_PRODUCTS])
        single = self._standardised(candidates)
        paired = single[:, self._paired]
        first, second = np.triu_indices(len(self._paired))
        design = np.concatenate([single, *(paired[:, [k]] * paired[:, k:] for k in range(len(self._paired)))], 1)
        centre = design.mean(0)
        weights = _ridge(design - centre, scores - mean, _SHRINKAGE * len(candidates)).astype(np.float32)
        self._linear, products = weights[: len(sizes)], weights[len(sizes) :]
        self._products = np.zeros((len(self._paired), len(self._paired)), np.float32)
        self._products[first, second] = products
        self._constant = mean - centre @ weights

    def _standardised(self, candidates: np.ndarray) -> np.ndarray:
        adding = self.added[candidates + self._starts]
        return ((adding - self._centre) / self._spread).astype(np.float32)

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """The guess for each candidate, (N,)."""
        single = self._standardised(candidates)
        paired = single[:, self._paired]
        return single @ self._linear + ((paired @ self._products) * paired).sum(1) + self._constant


def _ridge(design: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    gram = (design.T @ design).astype(np.float64)
    gram[np.diag_indices(len(gram))] += penalty
    return np.linalg.solve(gram, design.T @ targets)


def exchanges(
    candidate: np.ndarray, added: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """What differs from a candidate in one variable, the most promising that differ in two, and some that do in more.

    Inside a budget, a variable can often gain only what another gives up, so that one change alone leads nowhere.

    Args:
        candidate: integers (variables,).
        added: what each value of each variable adds to a score, (sum of sizes,).
        sizes: values of each variable.
        count: how many that differ in two, and how many that differ in more.
        rng: of all chances.

    Returns:
        Integers (N, variables): all of one change, then those of two, the most promising first, then those of more.
    """
    starts = np.cumsum(sizes) - sizes
    columns = np.repeat(np.arange(len(sizes)), sizes)
    values = np.arange(int(sizes.sum())) - starts[columns]
    gains = added - added[starts + candidate][columns]
    changes = np.flatnonzero(values != candidate[columns])
    if not len(changes):
        return candidate[None][:0]
    single = np.repeat(candidate[None], len(changes), 0)
    single[np.arange(len(changes)), columns[changes]] = values[changes]
    paired = changes[np.argsort(-gains[changes], kind="stable")[:_PAIRED]]
    first, second = (paired[side] for side in np.triu_indices(len(paired), 1))
    apart = columns[first] != columns[second]
    first, second = first[apart], second[apart]
    best = np.argsort(-(gains[first] + gains[second]), kind="stable")[:count]
    double = np.repeat(candidate[None], len(best), 0)
    for side in (first[best], second[best]):
        double[np.arange(len(best)), columns[side]] = values[side]
    found = np.concatenate([single, double])
    one, other = (found[rng.integers(len(found), size=count)] for _ in range(2))
    return np.concatenate([found, np.where(one != candidate, one, other)])


def shocked(candidates: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Candidates, so many of them anew at random, with a fifth of their variables (two at least) anywhere."""
    found = candidates[rng.integers(len(candidates), size=count)]
    changed = min(len(sizes), max(2, round(len(sizes) / 5)))
    columns = rng.random(found.shape).argsort(1)[:, :changed]
    np.put_along_axis(found, columns, rng.integers(0, sizes[columns]), 1)
    return found
