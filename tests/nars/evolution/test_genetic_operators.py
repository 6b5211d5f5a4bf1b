"""Neighbors of a candidate, and the surrogate regression."""

import numpy as np
import pytest

from fbnetv3.nars.evolution.genetic_operators import (
    SurrogateRegression,
    breed,
    list_neighbors,
    perturb,
)
from fbnetv3.nars.space.search_space import Space, space_from_dict
from fbnetv3.nars.space.variables import Variable
from tests.nars.space.spaces import CONDITIONAL, random_candidates

CONTINUOUS = space_from_dict(CONDITIONAL)


def discrete_space(*sizes):
    """Return a space of categories, without conditions."""
    return Space("discrete", tuple(Variable(f"v{i}", tuple(range(n)), True) for i, n in enumerate(sizes)))


def tabulated_effects(*tables):
    return lambda candidates: np.stack(
        [np.array(table)[column] for table, column in zip(tables, candidates.T, strict=True)], 1
    )


def test_neighbors_are_all_single_changes_the_most_promising_pairs_and_combinations():
    candidate = np.array([1, 0, 1])
    effects = tabulated_effects([0.0, 0, 5], [0, 1, 2, 3], [9, 0])
    neighbors = list_neighbors(candidate, effects, discrete_space(3, 4, 2), 5, np.random.default_rng(0))
    num_changes = (neighbors != candidate).sum(1)
    assert (num_changes[:6] == 1).all() and len(np.unique(neighbors[:6], axis=0)) == 6
    assert (num_changes[6:11] == 2).all() and len(neighbors) == 6 + 5 + 5
    assert neighbors[6].tolist() == [2, 0, 0], (
        "5 - 0 and 9 - 0 are the two largest gains of different variables"
    )
    assert (num_changes[11:] > 0).all() and (num_changes[11:] == 3).any()


def test_a_candidate_without_alternatives_has_no_neighbors():
    neighbors = list_neighbors(
        np.array([0, 0]), np.zeros_like, discrete_space(1, 1), 5, np.random.default_rng(0)
    )
    assert neighbors.shape == (0, 2)


def test_neighbors_change_active_variables_and_complete_those_that_become_active():
    candidate = CONTINUOUS.encode({"optimizer": "adam", "lr": 1e-3, "depth": 1, "width": 64})
    neighbors = list_neighbors(candidate, np.zeros_like, CONTINUOUS, 200, np.random.default_rng(0))
    assert (CONTINUOUS.canonicalize(neighbors) == neighbors).all()
    optimizer, lr, momentum = neighbors[:, :3].T
    # 2 other optimizers, 2 other depths, and some of a million learning rates and a thousand widths
    assert set(optimizer) == {0, 1, 2} and 50 < len(np.unique(lr)) < 70
    spread = np.abs(lr - candidate[1])
    assert (spread == 1).any() and (spread > 400_000).any(), "small and large steps"
    assert len(np.unique(momentum[optimizer > 0])) > 10 and (momentum[optimizer == 0] == 0).all()


def test_offspring_and_perturbed_candidates_are_inside_the_space():
    rng, space = np.random.default_rng(0), discrete_space(3, 4, 2, 1, 7)
    parents = rng.integers(0, space.sizes, (6, 5))
    offspring = breed(parents, rng.normal(size=6), space, 10, rng)
    perturbed = perturb(parents, space, 40, rng)
    assert offspring.shape == (60, 5) and perturbed.shape == (40, 5)
    for candidates in (offspring, perturbed):
        assert (candidates >= 0).all() and (candidates < space.sizes).all()


def test_offspring_and_perturbed_candidates_are_canonical_with_random_values_of_activated_variables():
    rng, depth, width_2 = np.random.default_rng(0), 4, 6
    shallow = CONTINUOUS.encode({"optimizer": "adam", "lr": 1e-3, "depth": 1, "width": 64})
    parents = np.tile(shallow, (4, 1))
    offspring = breed(parents, np.zeros(4), CONTINUOUS, 1000, rng)
    for candidates in (offspring, perturb(parents, CONTINUOUS, 2000, rng)):
        assert (CONTINUOUS.canonicalize(candidates) == candidates).all()
        widths = CONTINUOUS.positions(candidates[candidates[:, depth] > 0])[:, width_2]
        assert len(widths) > 200
        assert np.percentile(widths, [10, 50, 90]) == pytest.approx([0.1, 0.5, 0.9], abs=0.1)


def test_offspring_inherit_values_of_the_parent_that_has_the_variable():
    rng, momentum = np.random.default_rng(0), 2
    shared = {"lr": 1e-3, "depth": 1, "width": 64}
    adam = CONTINUOUS.encode(shared | {"optimizer": "adam"})
    rmsprop = CONTINUOUS.encode(shared | {"optimizer": "rmsprop", "momentum": 0.9})
    # The first of those below average cross with any other
    parents, scores = np.stack([adam, adam, rmsprop, adam]), np.array([0.0, 0, 1, 2])
    offspring = breed(parents, scores, CONTINUOUS, 500, rng)[:500]
    assert (offspring[:, momentum] == rmsprop[momentum]).sum() > 5


def test_the_regression_recovers_the_effects_of_an_additive_score():
    rng, space = np.random.default_rng(0), discrete_space(3, 4, 2)
    candidates = rng.integers(0, space.sizes, (500, 3))
    true_effects = [rng.normal(size=size) for size in space.sizes]
    scores = tabulated_effects(*true_effects)(candidates).sum(1)
    regression = SurrogateRegression(candidates, scores, space)
    for variable, expected in enumerate(true_effects):
        every_value = np.zeros((len(expected), 3), int)
        every_value[:, variable] = np.arange(len(expected))
        effects = regression.effects(every_value)[:, variable]
        assert effects - effects.mean() == pytest.approx(expected - expected.mean(), abs=0.05)
    assert np.corrcoef(regression(candidates), scores)[0, 1] > 0.999


def test_the_regression_captures_an_interaction_of_two_variables():
    rng, space = np.random.default_rng(0), discrete_space(*[3] * 60)  # more variables than have products
    candidates = rng.integers(0, space.sizes, (2000, 60))
    a, b, c = candidates[:, :3].T.astype(float)
    scores = 2 * a + 3 * b + 2 * (a - 1) * (b - 1) + 0.1 * c
    regression = SurrogateRegression(candidates[:1500], scores[:1500], space)
    additive = regression.effects(candidates).sum(1)
    unseen, variance = slice(1500, None), np.var(scores[1500:])
    assert np.var(regression(candidates[unseen]) - scores[unseen]) < 0.02 * variance
    assert np.var(additive[unseen] - scores[unseen]) > 0.1 * variance


def test_the_regression_estimates_continuous_variables_and_the_effect_of_being_inactive():
    candidates = random_candidates(CONTINUOUS, 3000)
    positions, active = CONTINUOUS.positions(candidates), CONTINUOUS.active(candidates)
    lr, momentum = 1, 2
    peak = -10 * (positions[:, lr] - 0.4) ** 2
    scores = peak + np.where(active[:, momentum], 4 * positions[:, momentum], 2)
    regression = SurrogateRegression(candidates[:2000], scores[:2000], CONTINUOUS)
    errors = regression(candidates[2000:]) - scores[2000:]
    assert np.var(errors) < 0.02 * np.var(scores[2000:])
    effects = regression.effects(candidates)[:, momentum]
    means = [effects[rows].mean() for rows in (~active[:, momentum], active[:, momentum])]
    assert means[0] == pytest.approx(means[1], abs=0.15), "2 is the mean of active ones too"
