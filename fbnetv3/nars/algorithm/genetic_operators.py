"""Genetic operators (mutation, crossover), and a surrogate regression that ranks the candidates that they produce.

Candidates are integers (N, variables); `sizes` is the number of values of each variable.
"""

from __future__ import annotations

import numpy as np

# Rates of candidates below average (k3 and k4 of Srinivas and Patnaik); better ones have lower rates
_CROSSOVER_RATE = 1.0
_MUTATION_RATE = 0.5
# Number of single changes, those with the largest gain, that are combined into pairs
_MAX_PAIRED_CHANGES = 600
# Number of variables whose products are features of the regression, and its ridge penalty per candidate
_MAX_PRODUCT_VARIABLES = 40
_RIDGE_PENALTY = 0.01


def breed(
    parents: np.ndarray, scores: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Breed `count` offspring of each parent by crossover and mutation, at rates that adapt to the parents' scores."""
    first = np.repeat(np.arange(len(parents)), count)
    second = rng.integers(len(parents), size=len(first))
    best = scores.max()
    mean = scores.mean()
    spread = max(best - mean, 1e-12)

    def adaptive_rate(fitness: np.ndarray, max_rate: float) -> np.ndarray:
        # Falls from `max_rate` at average fitness to 0 at the best
        return np.where(fitness >= mean, max_rate * (best - fitness) / spread, max_rate)

    # Uniform crossover
    pair_fitness = np.maximum(scores[first], scores[second])
    crossed = rng.random(len(first)) < adaptive_rate(pair_fitness, _CROSSOVER_RATE)
    from_second = (rng.random((len(first), len(sizes))) < 0.5) & crossed[:, None]
    offspring = np.where(from_second, parents[second], parents[first])
    # The rate is at least one variable per candidate, so that the best ones mutate too, times a random factor
    mutation_rate = np.maximum(adaptive_rate(scores[first], _MUTATION_RATE), 1 / len(sizes))
    mutated = rng.random(offspring.shape) < mutation_rate[:, None] * rng.random((len(first), 1))
    # Offspring without crossover mutate in at least one variable, though possibly to the same value
    mutated[np.arange(len(first)), rng.integers(len(sizes), size=len(first))] |= ~crossed
    # To an adjacent value, where the last and the first are adjacent, or to any value
    adjacent = offspring + rng.choice([-1, 1], offspring.shape)
    uniform = rng.integers(0, sizes, offspring.shape)
    new_values = np.where(rng.random(offspring.shape) < 0.5, adjacent, uniform) % sizes
    return np.where(mutated, new_values, offspring)


def list_neighbors(
    candidate: np.ndarray, effects: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return neighbors of a candidate: all single changes, the most promising pairs, and random combinations of these.

    Within a budget, a variable can often gain only what another gives up, so single changes rarely help. `effects`,
    (sum of sizes,), are the estimated effects of each variable's values on the score. The result has up to `count`
    pairs, in order of decreasing gain, and `count` combinations.
    """
    # All (variable, value) in sequence, and the gain of changing to each
    starts = np.cumsum(sizes) - sizes
    variables = np.repeat(np.arange(len(sizes)), sizes)
    values = np.arange(int(sizes.sum())) - starts[variables]
    gains = effects - effects[starts + candidate][variables]
    # Single changes
    changes = np.flatnonzero(values != candidate[variables])
    if not len(changes):
        return candidate[None][:0]
    single = np.repeat(candidate[None], len(changes), 0)
    single[np.arange(len(changes)), variables[changes]] = values[changes]
    # Pairs of changes of different variables
    promising = changes[np.argsort(-gains[changes], kind="stable")[:_MAX_PAIRED_CHANGES]]
    rows, columns = np.triu_indices(len(promising), 1)
    first = promising[rows]
    second = promising[columns]
    different = variables[first] != variables[second]
    first = first[different]
    second = second[different]
    best = np.argsort(-(gains[first] + gains[second]), kind="stable")[:count]
    double = np.repeat(candidate[None], len(best), 0)
    for change in (first[best], second[best]):
        double[np.arange(len(best)), variables[change]] = values[change]
    # Both changes of two random neighbors at once
    neighbors = np.concatenate([single, double])
    neighbors_a = neighbors[rng.integers(len(neighbors), size=count)]
    neighbors_b = neighbors[rng.integers(len(neighbors), size=count)]
    combined = np.where(neighbors_a != candidate, neighbors_a, neighbors_b)
    return np.concatenate([neighbors, combined])


def perturb(candidates: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of the candidates and set a fifth of the variables of each, at least two, to random values."""
    perturbed = candidates[rng.integers(len(candidates), size=count)]
    num_changes = min(len(sizes), max(2, round(len(sizes) / 5)))
    variables = rng.random(perturbed.shape).argsort(1)[:, :num_changes]
    np.put_along_axis(perturbed, variables, rng.integers(0, sizes[variables]), 1)
    return perturbed


class SurrogateRegression:
    """A cheap estimate of scores that tells which candidates are worth scoring.

    A ridge regression estimates the effect of each value of each variable; a second one is quadratic in these
    effects.
    """

    def __init__(self, candidates: np.ndarray, scores: np.ndarray, sizes: np.ndarray) -> None:
        self._starts = np.cumsum(sizes) - sizes
        mean = scores.mean()
        # Additive model on one-hot values: the effect of each value of each variable on the score, (sum of sizes,)
        one_hot = np.zeros((len(candidates), int(sizes.sum())), np.float32)
        np.put_along_axis(one_hot, candidates + self._starts, 1.0, 1)
        self.effects = _ridge(one_hot - one_hot.mean(0), scores - mean, 1.0)
        # Standardize the effects of each candidate's values
        effects = self.effects[candidates + self._starts]
        self._center = effects.mean(0)
        self._scale = effects.std(0) + 1e-9
        # Quadratic model; a large space has too many products, so only variables with large effects have any
        self._product_variables = np.sort(np.argsort(-self._scale, kind="stable")[:_MAX_PRODUCT_VARIABLES])
        num_factors = len(self._product_variables)
        linear = self._standardized_effects(candidates)
        factors = linear[:, self._product_variables]
        products = [factors[:, [k]] * factors[:, k:] for k in range(num_factors)]
        design = np.concatenate([linear, *products], 1)
        design_mean = design.mean(0)
        penalty = _RIDGE_PENALTY * len(candidates)
        weights = _ridge(design - design_mean, scores - mean, penalty).astype(np.float32)
        self._linear_weights = weights[: len(sizes)]
        self._product_weights = np.zeros((num_factors, num_factors), np.float32)
        self._product_weights[np.triu_indices(num_factors)] = weights[len(sizes) :]
        self._constant = mean - design_mean @ weights

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Estimate the scores of candidates, (N,)."""
        linear = self._standardized_effects(candidates)
        factors = linear[:, self._product_variables]
        products = ((factors @ self._product_weights) * factors).sum(1)
        return linear @ self._linear_weights + products + self._constant

    def _standardized_effects(self, candidates: np.ndarray) -> np.ndarray:
        effects = self.effects[candidates + self._starts]
        return ((effects - self._center) / self._scale).astype(np.float32)


def _ridge(design: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    gram = (design.T @ design).astype(np.float64)
    gram[np.diag_indices(len(gram))] += penalty
    return np.linalg.solve(gram, design.T @ targets)
