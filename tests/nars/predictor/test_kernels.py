"""Kernels of variables and their combinations: values, derivatives, and positive definiteness."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbnetv3.nars.predictor.kernels import (
    combine_kernels,
    kernel_inputs,
    length_scale_gradients,
    level_derivatives,
    level_distances,
    level_kernels,
    look_up,
)
from fbnetv3.nars.space.search_space import space_from_dict
from tests.nars.space.spaces import CONDITIONAL, conditional_spaces, random_candidates

SPACE = space_from_dict(CONDITIONAL)
LENGTH_SCALES = np.exp(np.random.default_rng(0).normal(0, 0.7, len(SPACE)))


def variable_tables(space, candidates, length_scales, function=level_kernels):
    """Return a function of distances and length scales between the candidates, (variables, N, N)."""
    inputs = kernel_inputs(space, candidates)
    distances = level_distances(inputs, inputs, space.is_categorical)
    return look_up(function(distances, length_scales, space.is_categorical), inputs, inputs)


def kernels_of_pair(space, first, second):
    """Return the kernels of all variables with length scales of 1 between two candidates, given as values."""
    candidates = np.stack([space.encode(first), space.encode(second)])
    return variable_tables(space, candidates, np.ones(len(space)))[:, 0, 1]


def matern(distance):
    """Rasmussen and Williams, eq. 4.17."""
    return (1 + 5**0.5 * distance + 5 * distance**2 / 3) * np.exp(-(5**0.5) * distance)


def test_numbers_are_compared_by_position_and_categories_by_whether_they_differ():
    first = {"optimizer": "adam", "lr": 1e-3, "depth": 1, "width": 16}
    second = {"optimizer": "sgd", "lr": 1e-4, "depth": 3, "width": 16, "width_2": 16, "width_3": 16}
    second |= {"momentum": 1.0, "nesterov": True, "dropout_3": None}
    optimizer, lr, momentum, nesterov, depth, width, *_ = kernels_of_pair(SPACE, first, second)
    assert optimizer == pytest.approx(np.exp(-1))
    assert lr == pytest.approx(matern(1 / 4), rel=1e-5), "a decade of four on a log scale"
    assert depth == pytest.approx(matern(1.0))
    assert width == 1
    # Inactive in the first candidate
    assert nesterov == pytest.approx(np.exp(-1))
    assert momentum == pytest.approx(matern(0.5**0.5)), "0.5 off the line, and 0.5 along it from the center"


def test_two_inactive_values_are_equal():
    shallow = {"optimizer": "adam", "depth": 1, "width": 16}
    kernels = kernels_of_pair(SPACE, shallow | {"lr": 1e-3}, shallow | {"lr": 1e-1})
    assert np.flatnonzero(kernels != 1).tolist() == [1]


def test_combinations_are_the_mean_the_mean_product_of_pairs_and_the_product():
    candidates = random_candidates(SPACE, 12)
    kernels = variable_tables(SPACE, candidates, LENGTH_SCALES)
    mean, pairs, product = combine_kernels(kernels).combinations
    np.testing.assert_allclose(mean, kernels.mean(0))
    np.testing.assert_allclose(pairs, np.mean([a * b for a, b in combinations(kernels, 2)], 0))
    np.testing.assert_allclose(product, kernels.prod(0))
    for term in (mean, pairs, product):
        np.testing.assert_allclose(np.diag(term), 1)


def test_a_single_variable_has_no_pairs():
    kernels = variable_tables(SPACE, random_candidates(SPACE, 5), LENGTH_SCALES)[:1]
    mean, pairs, product = combine_kernels(kernels).combinations
    assert (mean == kernels[0]).all() and (product == kernels[0]).all() and not pairs.any()


def test_kernels_between_other_candidates_are_parts_of_the_kernel_of_all():
    """Variables with many values have levels of their own in each set of candidates."""
    candidates = random_candidates(SPACE, 30)
    a, b = kernel_inputs(SPACE, candidates[:10]), kernel_inputs(SPACE, candidates[10:])
    distances = level_distances(a, b, SPACE.is_categorical)
    tables = level_kernels(distances, LENGTH_SCALES, SPACE.is_categorical)
    expected = variable_tables(SPACE, candidates, LENGTH_SCALES)[:, :10, 10:]
    np.testing.assert_allclose(look_up(tables, a, b), expected)
    chunks = [look_up(tables, a, chunk) for chunk in b.split(7)]
    assert [chunk.shape[2] for chunk in chunks] == [7, 7, 6]
    np.testing.assert_allclose(np.concatenate(chunks, 2), expected)


@settings(deadline=None, max_examples=40)
@given(space=conditional_spaces(), seed=st.integers(0, 1000))
def test_kernels_are_positive_definite_with_inactive_variables(space, seed):
    candidates = random_candidates(space, 25, seed)
    length_scales = np.exp(np.random.default_rng(seed).normal(0, 1.5, len(space)))
    kernels = variable_tables(space, candidates, length_scales)
    for kernel in (*kernels, *combine_kernels(kernels).combinations):
        np.testing.assert_allclose(kernel, kernel.T)
        assert np.linalg.eigvalsh(kernel).min() > -1e-10


def test_derivatives_equal_finite_differences():
    candidates, step = random_candidates(SPACE, 15), 1e-6
    higher, lower = (
        variable_tables(SPACE, candidates, LENGTH_SCALES * np.exp(shift)) for shift in (step, -step)
    )
    derivatives = variable_tables(SPACE, candidates, LENGTH_SCALES, level_derivatives)
    np.testing.assert_allclose(derivatives, (higher - lower) / (2 * step), atol=1e-8)
    assert (np.abs(derivatives).max((1, 2))[:-1] > 0.01).all(), "the last one is rarely active"


def test_length_scale_gradients_equal_finite_differences():
    candidates, step = random_candidates(SPACE, 15), 1e-6
    rng = np.random.default_rng(0)
    outer, variances = rng.normal(size=(15, 15)), np.array([0.7, 0.3, 1.2])

    def weighted_sum(length_scales):
        terms = combine_kernels(variable_tables(SPACE, candidates, length_scales)).combinations
        return sum(variance * (outer * term).sum() for variance, term in zip(variances, terms, strict=True))

    shifts = step * np.eye(len(SPACE))
    expected = [
        (weighted_sum(LENGTH_SCALES * np.exp(shift)) - weighted_sum(LENGTH_SCALES * np.exp(-shift)))
        / (2 * step)
        for shift in shifts
    ]
    kernels = variable_tables(SPACE, candidates, LENGTH_SCALES)
    derivatives = variable_tables(SPACE, candidates, LENGTH_SCALES, level_derivatives)
    gradients = length_scale_gradients(outer, kernels, combine_kernels(kernels), variances, derivatives)
    np.testing.assert_allclose(gradients, expected, atol=1e-7)
