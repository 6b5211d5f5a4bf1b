"""The Gaussian process: its algebra, agreement with scikit-learn, and what it learns from few trials."""

import math

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from fbnetv3.nars.predictor.gaussian_process import GaussianProcess
from fbnetv3.nars.space.search_space import space_from_dict
from tests.nars.space.spaces import CONDITIONAL, random_candidates

SPACE = space_from_dict(CONDITIONAL)
LR, MOMENTUM, DEPTH = 1, 2, 4
LINE = space_from_dict({"name": "line", "variables": {"x": {"range": [0.0, 1.0]}}})
_EXTRA_NOISE = 1e-6  # added to the noise variance, so that equal candidates do no harm


def standardize(values):
    return (values - values.mean()) / values.std()


def smooth(candidates):
    """Return a value with effects of numbers, of a category, and of an active variable."""
    x, active = SPACE.positions(candidates), SPACE.active(candidates)
    value = -4 * (x[:, LR] - 0.6) ** 2 + 0.5 * (candidates[:, 0] == 1)
    return value + active[:, MOMENTUM] * x[:, MOMENTUM] * 0.8 + 0.3 * candidates[:, DEPTH]


def noisy(values, std=0.2):
    return values + np.random.default_rng(1).normal(0, std, len(values))


def random_parameters(space, num_covariates=0, seed=0):
    """Return parameters that differ from those that a process starts with."""
    rng = np.random.default_rng(seed)
    start = GaussianProcess(space, num_covariates).parameters
    return start + rng.normal(0, 0.5, len(start))


def conditioned(candidates, targets, parameters, **data):
    process = GaussianProcess(SPACE, data.get("covariates", targets[:, None][:, :0]).shape[1], parameters)
    process.fit(candidates, targets, **data, optimize=False)
    return process


def test_predictions_equal_those_of_scikit_learn():
    """On one continuous variable, the sum and the product of the variables' kernels are the same Matern kernel."""
    rng = np.random.default_rng(0)
    candidates, targets = rng.integers(0, LINE.sizes, (25, 1)), rng.normal(size=25)
    noise = rng.uniform(0, 0.1, 25)
    length_scale, variances, noise_variance, constant = 0.3, (0.8, 0.5, 0.4), 0.05, 0.7
    parameters = np.log([length_scale, *variances, noise_variance, 1])
    parameters[-1] = constant
    process = GaussianProcess(LINE, parameters=parameters)
    process.fit(candidates, targets, noise, optimize=False)
    unseen = rng.integers(0, LINE.sizes, (50, 1))
    prediction = process.predict(unseen)

    kernel = ConstantKernel(variances[0] + variances[2]) * Matern(length_scale, nu=2.5)
    alpha = noise_variance + _EXTRA_NOISE + noise
    reference = GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None)
    reference.fit(LINE.positions(candidates), targets - constant)
    mean, std = reference.predict(LINE.positions(unseen), return_std=True)
    np.testing.assert_allclose(prediction.mean, mean + constant, atol=1e-5)
    np.testing.assert_allclose(prediction.std, std, atol=1e-5)


@pytest.mark.parametrize("num_covariates", [0, 2])
def test_the_gradient_of_the_posterior_density_equals_finite_differences(num_covariates):
    """In a space with conditions and categories; length scales, variances, noise, constant and weights."""
    rng = np.random.default_rng(1)
    candidates = random_candidates(SPACE, 20)
    parameters = random_parameters(SPACE, num_covariates)
    data = {"noise": rng.uniform(0, 0.2, 20), "covariates": rng.normal(size=(20, num_covariates))}
    process = conditioned(candidates, standardize(smooth(candidates)), parameters, **data)
    _, gradient = process._negative_log_posterior(parameters)
    step = 1e-5
    expected = [
        (
            process._negative_log_posterior(parameters + shift)[0]
            - process._negative_log_posterior(parameters - shift)[0]
        )
        / (2 * step)
        for shift in step * np.eye(len(parameters))
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_fit_increases_the_posterior_density():
    candidates = random_candidates(SPACE, 40)
    process = GaussianProcess(SPACE)
    before = process.parameters.copy()
    process.fit(candidates, standardize(smooth(candidates)))
    density_before, density_after = (
        process._negative_log_posterior(p)[0] for p in (before, process.parameters)
    )
    assert density_after < density_before - 10


def test_leave_one_out_predictions_equal_those_of_a_process_without_the_trial():
    """The closed form equals the definition, for the same parameters; the deviations include the noise."""
    candidates = random_candidates(SPACE, 20)
    targets, noise = standardize(smooth(candidates)), np.linspace(0, 0.3, 20)
    parameters = random_parameters(SPACE)
    process = conditioned(candidates, targets, parameters, noise=noise)
    predicted = process.leave_one_out()
    for row in (0, 7, 19):
        rest = np.arange(20) != row
        without = conditioned(candidates[rest], targets[rest], parameters, noise=noise[rest])
        expected = without.predict(candidates[[row]])
        assert predicted.mean[row] == pytest.approx(expected.mean[0], abs=1e-5)
        variance = expected.std[0] ** 2 + process.noise_std**2 + noise[row] + _EXTRA_NOISE
        assert predicted.std[row] == pytest.approx(math.sqrt(variance), abs=1e-5)


def test_learns_from_all_kinds_of_variables():
    candidates = random_candidates(SPACE, 360)
    values = standardize(smooth(candidates))
    process = GaussianProcess(SPACE)
    process.fit(candidates[:60], noisy(values[:60]))
    prediction = process.predict(candidates[60:])
    assert np.corrcoef(prediction.mean, values[60:])[0, 1] > 0.95
    assert process.noise_std == pytest.approx(0.2, abs=0.1)
    # Two thirds of the normal distribution are within one deviation
    deviations = np.abs(prediction.mean - values[60:]) / prediction.std
    assert 0.5 < (deviations < 1).mean() < 0.9 and (deviations < 3).mean() > 0.97


def test_predictions_from_pure_noise_are_close_to_the_mean():
    deviations = []
    for seed in range(6):
        candidates = random_candidates(SPACE, 300, seed)
        process = GaussianProcess(SPACE)
        process.fit(candidates[:60], standardize(np.random.default_rng(seed).normal(size=60)))
        deviations.append(process.predict(candidates[60:]).mean.std())
    assert np.mean(deviations) < 0.5


def test_covariates_recover_a_linear_effect():
    """As of a context that all trials share in part, such as the number of epochs."""
    candidates, rng = random_candidates(SPACE, 60), np.random.default_rng(0)
    covariates = rng.normal(size=(60, 2))
    targets = standardize(smooth(candidates)) + covariates @ [1.2, -0.4]
    process = GaussianProcess(SPACE, num_covariates=2)
    process.fit(candidates, targets, covariates=covariates)
    base, *shifted = (
        process.predict(candidates, np.tile(row, (60, 1))).mean for row in ([0, 0], [1, 0], [0, 1])
    )
    assert [np.mean(mean - base) for mean in shifted] == pytest.approx([1.2, -0.4], abs=0.1)
    assert np.corrcoef(base, smooth(candidates))[0, 1] > 0.98


def test_a_target_with_much_noise_of_its_own_counts_little():
    candidates = random_candidates(SPACE, 30)
    targets = standardize(smooth(candidates))
    spoiled = targets + 5 * (np.arange(30) == 3)
    parameters = random_parameters(SPACE)
    exact, ignored, believed = (
        conditioned(candidates, values, parameters, noise=noise).predict(candidates).mean
        for values, noise in (
            (targets, np.zeros(30)),
            (spoiled, 1e6 * (np.arange(30) == 3)),
            (spoiled, np.zeros(30)),
        )
    )
    assert np.abs(np.delete(ignored - exact, 3)).max() < 0.1
    assert believed[3] - exact[3] > 3


def test_predictions_do_not_depend_on_the_order_of_the_trials():
    candidates, order = random_candidates(SPACE, 40), np.random.default_rng(2).permutation(40)
    targets = standardize(smooth(candidates))
    unseen, parameters = random_candidates(SPACE, 50, seed=1), random_parameters(SPACE)
    first = conditioned(candidates, targets, parameters).predict(unseen)
    second = conditioned(candidates[order], targets[order], parameters).predict(unseen)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-5)
    np.testing.assert_allclose(first.std, second.std, atol=1e-5)


def test_predictions_do_not_depend_on_the_other_candidates():
    candidates = random_candidates(SPACE, 1200)
    process = GaussianProcess(SPACE)
    process.fit(candidates[:30], noisy(standardize(smooth(candidates[:30]))))
    for all_values, values in zip(
        process.predict(candidates), process.predict(candidates[1000:1010]), strict=True
    ):
        np.testing.assert_allclose(all_values[1000:1010], values, atol=1e-5)
    assert process.predict(candidates[:0]).mean.shape == (0,)


def test_certain_at_the_trials_and_uncertain_far_from_them():
    candidates = np.array([[200_000], [250_000], [300_000]])
    process = GaussianProcess(LINE, parameters=[math.log(0.1), 0, -9, 0, -9, 0])
    process.fit(candidates, np.array([-1.0, 0.0, 1.0]), optimize=False)
    near, far = process.predict(np.array([[250_000], [999_000]])).std
    assert near < 0.05 and far == pytest.approx(2**0.5, rel=0.01), "the square root of both variances"


def test_equal_candidates_are_no_harm():
    candidates = random_candidates(SPACE, 5)[[0, 0, 0, 1, 1, 2, 3, 4]]
    process = GaussianProcess(SPACE)
    process.fit(candidates, np.array([0.1, 0.1, 0.1, -0.2, -0.2, 0.5, 0, 1]))
    assert process.predict(candidates[[0, 3]]).mean == pytest.approx([0.1, -0.2], abs=0.2)


def test_another_hypothesis_has_other_length_scales_and_the_same_targets():
    candidates = random_candidates(SPACE, 30)
    process = GaussianProcess(SPACE)
    process.fit(candidates, noisy(standardize(smooth(candidates))))
    unseen, before = random_candidates(SPACE, 100, seed=1), process.parameters.copy()
    other = process.perturbed(0.7, np.random.default_rng(0))
    changed = np.flatnonzero(other.parameters != process.parameters)
    assert changed.tolist() == list(range(len(SPACE))) and (process.parameters == before).all()
    means = [each.predict(unseen).mean for each in (process, other)]
    assert np.corrcoef(means)[0, 1] > 0.5 and np.abs(means[0] - means[1]).max() > 0.05
    same = process.perturbed(0.0, np.random.default_rng(0))
    np.testing.assert_allclose(same.predict(unseen).mean, means[0])


def test_the_next_fit_starts_from_the_parameters():
    """A process with the parameters of another one is fitted to the same trials without a change."""
    candidates = random_candidates(SPACE, 40)
    targets = standardize(smooth(candidates))
    first = GaussianProcess(SPACE)
    for _ in range(6):  # until the optimizer has converged
        first.fit(candidates, targets)
    second = GaussianProcess(SPACE, parameters=first.parameters)
    second.fit(candidates, targets)
    unseen = random_candidates(SPACE, 50, seed=1)
    np.testing.assert_allclose(first.predict(unseen).mean, second.predict(unseen).mean, atol=0.01)
