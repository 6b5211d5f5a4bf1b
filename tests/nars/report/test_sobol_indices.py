"""Sobol indices of functions whose indices are known."""

import numpy as np
import pytest

from fbnetv3.nars.report.sobol_indices import sobol_indices


def ishigami(points):
    x = np.pi * (2 * points - 1)
    return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])


A = np.array([0, 1, 4.5, 9])


def g_function(points):
    """Return the g-function of Saltelli and Sobol (1995), whose partial variances are 1/3 (1 + a)^-2."""
    return np.prod((np.abs(4 * points - 2) + A) / (1 + A), axis=1)


def test_the_ishigami_function():
    """Ishigami and Homma (1990): the first and third input act together, the second alone."""
    indices = sobol_indices(ishigami, 3, 4096)
    assert indices.first == pytest.approx([0.314, 0.442, 0], abs=0.02)
    assert indices.total == pytest.approx([0.558, 0.442, 0.244], abs=0.02)
    assert indices.pairs == pytest.approx({(0, 1): 0, (0, 2): 0.244, (1, 2): 0}, abs=0.03)


def test_the_g_function():
    partial = 1 / 3 / (1 + A) ** 2
    variance = np.prod(1 + partial) - 1
    indices = sobol_indices(g_function, 4, 4096)
    assert indices.first == pytest.approx(partial / variance, abs=0.02)
    assert indices.pairs[0, 1] == pytest.approx(partial[0] * partial[1] / variance, abs=0.02)


def test_pairs_are_those_of_the_inputs_that_matter():
    def function(points):
        return points[:, 1] * points[:, 4] + 1e-3 * points[:, 0]

    assert list(sobol_indices(function, 6, 256, num_paired=2).pairs) == [(1, 4)]


def test_a_constant_function_has_no_variance_to_share():
    indices = sobol_indices(lambda points: np.full(len(points), 3.0), 2, 64)
    assert indices.first.tolist() == indices.total.tolist() == [0, 0]


def test_the_evaluated_points_are_returned_with_their_outputs():
    indices = sobol_indices(ishigami, 3, 64, num_paired=2)
    assert indices.points.shape == ((3 + 2 + 2) * 64, 3)
    assert indices.outputs == pytest.approx(ishigami(indices.points))
