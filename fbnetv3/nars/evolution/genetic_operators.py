"""Genetic operators (mutation, crossover), and a surrogate regression that ranks the candidates that they produce.

Candidates are canonical, integers (N, variables).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fbnetv3.nars.space.search_space import Space

# Rates of candidates below average (k3 and k4 of Srinivas and Patnaik); better ones have lower rates
_CROSSOVER_RATE = 1.0
_MUTATION_RATE = 0.5
# Numbers with more values are large: only some of their values are neighbors, and effects are those of bins of values
_MAX_LISTED_VALUES = 64
_NUM_BINS = 32
# Number of single changes, those with the largest gain, that are combined into pairs
_MAX_PAIRED_CHANGES = 600
# Number of variables whose products are features of the regression, and its ridge penalty per candidate
_MAX_PRODUCT_VARIABLES = 40
_RIDGE_PENALTY = 0.01


def breed(
    parents: np.ndarray, scores: np.ndarray, space: Space, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Breed `count` offspring of each parent by crossover and mutation, at rates that adapt to the parents' scores."""
    sizes = space.sizes
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
    values_a, values_b = (_fill_inactive(parents[rows], space, rng) for rows in (first, second))
    offspring = np.where(from_second, values_b, values_a)
    # The rate is at least one variable per candidate, so that the best ones mutate too, times a random factor
    mutation_rate = np.maximum(adaptive_rate(scores[first], _MUTATION_RATE), 1 / len(sizes))
    mutated = rng.random(offspring.shape) < mutation_rate[:, None] * rng.random((len(first), 1))
    # Offspring without crossover mutate in at least one variable, though possibly to the same value
    mutated[np.arange(len(first)), rng.integers(len(sizes), size=len(first))] |= ~crossed
    # To an adjacent value, where the last and the first are adjacent, or to any value
    adjacent = offspring + _draw_steps(offspring.shape, space, rng)
    uniform = rng.integers(0, sizes, offspring.shape)
    new_values = np.where(rng.random(offspring.shape) < 0.5, adjacent, uniform) % sizes
    return space.canonicalize(np.where(mutated, new_values, offspring))


def _fill_inactive(candidates: np.ndarray, space: Space, rng: np.random.Generator) -> np.ndarray:
    """Give inactive variables random values, which offspring inherit where they activate the variables."""
    active = space.active(candidates)
    if active.all():
        return candidates
    return np.where(active, candidates, space.indices_from_unit(rng.random(candidates.shape)))


def _draw_steps(shape: tuple[int, ...], space: Space, rng: np.random.Generator) -> np.ndarray:
    """Draw steps to adjacent values: one value up or down, and up to a quarter of the range for large variables."""
    steps = rng.choice([-1, 1], shape)
    large = _large_variables(space)
    if len(large):
        exponents = rng.random((shape[0], len(large))) * np.log(space.sizes[large] / 4)
        steps[:, large] *= np.exp(exponents).astype(np.int64)
    return steps


def _large_variables(space: Space) -> np.ndarray:
    """Return the positions of the variables whose values are too many to be listed."""
    return np.flatnonzero((space.sizes > _MAX_LISTED_VALUES) & ~space.is_categorical)


def list_neighbors(
    candidate: np.ndarray,
    effects: Callable[[np.ndarray], np.ndarray],
    space: Space,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return neighbors of a candidate: single changes, the most promising pairs, and random combinations of these.

    Within a budget, a variable can often gain only what another gives up, so single changes rarely help. `effects` maps
    candidates, (N, variables), to the estimated effect of each of their values on the score, (N, variables).

    The single changes are to all other values of active variables, or to some of the values of large ones. The result
    has up to `count` pairs, in order of decreasing gain, and `count` combinations.
    """
    (active,) = space.active(candidate[None])
    values = []
    for index in np.flatnonzero(active):
        present = candidate[[index]]
        variations = space.variables[index].variations(present, _MAX_LISTED_VALUES, rng)
        values.append(np.setdiff1d(variations, present))
    # Single changes, and the gain of each
    variables = np.repeat(np.flatnonzero(active), list(map(len, values)))
    if not len(variables):
        return candidate[None][:0]
    changes = np.arange(len(variables))
    single = np.repeat(candidate[None], len(changes), 0)
    single[changes, variables] = np.concatenate(values)
    gains = effects(single)[changes, variables] - effects(candidate[None])[0, variables]
    # Pairs of changes of different variables
    promising = np.argsort(-gains, kind="stable")[:_MAX_PAIRED_CHANGES]
    rows, columns = np.triu_indices(len(promising), 1)
    first = promising[rows]
    second = promising[columns]
    different = variables[first] != variables[second]
    first = first[different]
    second = second[different]
    best = np.argsort(-(gains[first] + gains[second]), kind="stable")[:count]
    double = single[first[best]]
    changed = variables[second[best]]
    double[np.arange(len(best)), changed] = single[second[best], changed]
    # Both changes of two random neighbors at once
    neighbors = np.concatenate([single, double])
    neighbors_a = neighbors[rng.integers(len(neighbors), size=count)]
    neighbors_b = neighbors[rng.integers(len(neighbors), size=count)]
    combined = np.where(neighbors_a != candidate, neighbors_a, neighbors_b)
    return space.complete_changes(candidate[None], np.concatenate([neighbors, combined]), rng)


def perturb(candidates: np.ndarray, space: Space, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of the candidates and set a fifth of the variables of each, at least two, to random values."""
    drawn = candidates[rng.integers(len(candidates), size=count)]
    perturbed = drawn.copy()
    num_changes = min(len(space), max(2, round(len(space) / 5)))
    variables = rng.random(perturbed.shape).argsort(1)[:, :num_changes]
    np.put_along_axis(perturbed, variables, rng.integers(0, space.sizes[variables]), 1)
    return space.complete_changes(drawn, perturbed, rng)


class SurrogateRegression:
    """A cheap estimate of scores that tells which candidates are worth scoring.

    A ridge regression estimates the effect of each value of each variable, or of bins of the values of large variables;
    being inactive is one more value. A second one is quadratic in these effects.
    """

    def __init__(self, candidates: np.ndarray, scores: np.ndarray, space: Space) -> None:
        self._space = space
        self._large = _large_variables(space)
        self._num_values = space.sizes.copy()
        self._num_values[self._large] = _NUM_BINS
        widths = self._num_values + [bool(variable.when) for variable in space.variables]
        self._starts = np.cumsum(widths) - widths
        mean = scores.mean()
        # Additive model on one-hot values: the effect of each value of each variable on the score, (sum of widths,)
        one_hot = np.zeros((len(candidates), int(widths.sum())), np.float32)
        np.put_along_axis(one_hot, self._columns(candidates), 1.0, 1)
        self._effects = _ridge(one_hot - one_hot.mean(0), scores - mean, 1.0)
        # Standardize the effects of each candidate's values
        effects = self.effects(candidates)
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
        self._linear_weights = weights[: len(space)]
        self._product_weights = np.zeros((num_factors, num_factors), np.float32)
        self._product_weights[np.triu_indices(num_factors)] = weights[len(space) :]
        self._constant = mean - design_mean @ weights

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Estimate the scores of candidates, (N,)."""
        linear = self._standardized_effects(candidates)
        factors = linear[:, self._product_variables]
        products = ((factors @ self._product_weights) * factors).sum(1)
        return linear @ self._linear_weights + products + self._constant

    def effects(self, candidates: np.ndarray) -> np.ndarray:
        """Return the effect of each value of candidates on the score, (N, variables)."""
        return self._effects[self._columns(candidates)]

    def _columns(self, candidates: np.ndarray) -> np.ndarray:
        """Return the position of each value of candidates among the effects, integers (N, variables)."""
        values = candidates.copy()
        for index in self._large:
            positions = self._space.variables[index].positions(candidates[:, index])
            values[:, index] = np.minimum(positions * _NUM_BINS, _NUM_BINS - 1).astype(np.int64)
        return np.where(self._space.active(candidates), values, self._num_values) + self._starts

    def _standardized_effects(self, candidates: np.ndarray) -> np.ndarray:
        return ((self.effects(candidates) - self._center) / self._scale).astype(np.float32)


def _ridge(design: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    gram = (design.T @ design).astype(np.float64)
    gram[np.diag_indices(len(gram))] += penalty
    return np.linalg.solve(gram, design.T @ targets)
