"""Neighbors of a candidate, and the surrogate regression."""

import numpy as np
import pytest

from fbnetv3.nars.algorithm.genetic_operators import SurrogateRegression, breed, list_neighbors, perturb


def test_neighbors_are_all_single_changes_the_most_promising_pairs_and_combinations():
    sizes, candidate = np.array([3, 4, 2]), np.array([1, 0, 1])
    effects = np.array([0.0, 0, 5, 0, 1, 2, 3, 9, 0])
    neighbors = list_neighbors(candidate, effects, sizes, 5, np.random.default_rng(0))
    num_changes = (neighbors != candidate).sum(1)
    assert (num_changes[:6] == 1).all() and len(np.unique(neighbors[:6], axis=0)) == 6
    assert (num_changes[6:11] == 2).all() and len(neighbors) == 6 + 5 + 5
    assert neighbors[6].tolist() == [2, 0, 0], (
        "5 - 0 and 9 - 0 are the two largest gains of different variables"
    )
    assert (num_changes[11:] > 0).all() and (num_changes[11:] == 3).any()


def test_a_candidate_without_alternatives_has_no_neighbors():
    neighbors = list_neighbors(np.array([0, 0]), np.zeros(2), np.array([1, 1]), 5, np.random.default_rng(0))
    assert neighbors.shape == (0, 2)


def test_offspring_and_perturbed_candidates_are_inside_the_space():
    rng, sizes = np.random.default_rng(0), np.array([3, 4, 2, 1, 7])
    parents = rng.integers(0, sizes, (6, 5))
    offspring = breed(parents, rng.normal(size=6), sizes, 10, rng)
    perturbed = perturb(parents, sizes, 40, rng)
    assert offspring.shape == (60, 5) and perturbed.shape == (40, 5)
    for candidates in (offspring, perturbed):
        assert (candidates >= 0).all() and (candidates < sizes).all()


def test_the_regression_recovers_the_effects_of_an_additive_score():
    rng, sizes = np.random.default_rng(0), np.array([3, 4, 2])
    candidates, true_effects = rng.integers(0, sizes, (500, 3)), rng.normal(size=9)
    scores = true_effects[candidates + np.array([0, 3, 7])].sum(1)
    regression = SurrogateRegression(candidates, scores, sizes)
    for start, size in ((0, 3), (3, 4), (7, 2)):
        expected = true_effects[start : start + size]
        effects = regression.effects[start : start + size]
        assert effects - effects.mean() == pytest.approx(expected - expected.mean(), abs=0.05)
    assert np.corrcoef(regression(candidates), scores)[0, 1] > 0.999


def test_the_regression_captures_an_interaction_of_two_variables():
    rng, sizes = np.random.default_rng(0), np.full(60, 3)  # more variables than have products
    candidates = rng.integers(0, sizes, (2000, 60))
    a, b, c = candidates[:, :3].T.astype(float)
    scores = 2 * a + 3 * b + 2 * (a - 1) * (b - 1) + 0.1 * c
    regression = SurrogateRegression(candidates[:1500], scores[:1500], sizes)
    additive = regression.effects[candidates + np.cumsum(sizes) - sizes].sum(1)
    unseen, variance = slice(1500, None), np.var(scores[1500:])
    assert np.var(regression(candidates[unseen]) - scores[unseen]) < 0.02 * variance
    assert np.var(additive[unseen] - scores[unseen]) > 0.1 * variance
