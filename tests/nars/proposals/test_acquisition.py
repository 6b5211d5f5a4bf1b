"""Acquisition functions equal their definitions, also where the improvement itself underflows."""

import numpy as np
import pytest
from scipy.stats import norm

from fbnetv3.nars.predictor.gaussian_process import ValuePrediction
from fbnetv3.nars.proposals.acquisition import log_expected_improvement, upper_confidence_bound


def log_improvement(mean, std, best=0.0):
    shape = np.broadcast_shapes(np.shape(mean), np.shape(std))
    return log_expected_improvement(
        ValuePrediction(np.broadcast_to(mean, shape), np.broadcast_to(std, shape)), best
    )


def test_the_expected_improvement_of_a_normal_distribution():
    rng = np.random.default_rng(0)
    mean, std, best = rng.normal(size=1000), rng.uniform(0.1, 3, 1000), 0.7
    z = (mean - best) / std
    expected = std * (norm.pdf(z) + z * norm.cdf(z))
    np.testing.assert_allclose(log_improvement(mean, std, best), np.log(expected), rtol=1e-9)


def test_it_is_the_mean_of_the_improvements():
    values = np.random.default_rng(0).normal(0.3, 2.0, 10**6)
    expected = np.maximum(values - 1.0, 0).mean()
    assert np.exp(log_improvement([0.3], [2.0], 1.0)) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("deviations", [-50.0, -1e3, -1e5])
def test_far_below_the_best_it_follows_the_asymptotic_series(deviations):
    """The improvement is density(z) / z^2 * (1 - 3 / z^2 + ...), which underflows from z = -39."""
    series = norm.logpdf(deviations) - 2 * np.log(-deviations) + np.log1p(-3 / deviations**2)
    assert log_improvement([deviations], [1.0])[0] == pytest.approx(series, rel=1e-8)
    assert np.isneginf(norm.logpdf(deviations)) or norm.pdf(deviations) == 0


def test_far_above_the_best_it_is_the_difference():
    np.testing.assert_allclose(log_improvement([50.0, 1e6], [1.0, 1.0]), np.log([50.0, 1e6]))


def test_it_is_finite_however_hopeless():
    assert np.isfinite(log_improvement([-1e12, -1e200, 1e12], [1e-9, 1e-9, 1e-9])).all()


def test_it_grows_with_the_mean_and_with_the_uncertainty():
    means = np.concatenate([-np.logspace(5, -8, 300), [0.0], np.logspace(-8, 5, 300)])
    assert (np.diff(log_improvement(means, 1.0)) > 0).all()
    stds = np.logspace(-4, 4, 300)
    for mean in (-100.0, -1.0, 0.0):
        assert (np.diff(log_improvement(mean, stds)) > 0).all()
    # Above the best, a certain gain stays until the deviation is of its size
    assert (np.diff(log_improvement(1.0, stds)) > -1e-12).all()


def test_the_upper_confidence_bound():
    prediction = ValuePrediction(np.array([1.0, 2.0]), np.array([0.5, 0.0]))
    np.testing.assert_array_equal(upper_confidence_bound(prediction, 2.0), [2.0, 2.0])
