"""The Gaussian process: its algebra, pure noise, and empty feature groups."""

import pytest
import torch

from fbnetv3.nars.predictor.gaussian_process import FeatureGroups, GaussianProcess


def random_features(count, arch=4, recipe=3, embedded=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return FeatureGroups(*(torch.randn(count, n, generator=generator) for n in (arch, recipe, embedded)))


def rows(features, start, stop):
    return FeatureGroups(*(group[start:stop] for group in features))


def standardize(values):
    return ((values - values.mean()) / values.std(correction=0)).double()


def test_leave_one_out_predictions_equal_those_of_a_process_without_the_trial():
    """The closed form equals the definition, for the same kernel."""
    x = random_features(20)
    y = standardize(x.arch[:, 0] * x.recipe[:, 0] + x.recipe[:, 1])
    process = GaussianProcess()
    predictions = process.fit(x, y)
    noise = process._log_parameters["noise"].exp() + 1e-4
    kernel = process._kernel(process._products(process._trials), process._log_parameters)
    for row in (0, 7, 19):
        rest = [i for i in range(20) if i != row]
        covariance = kernel[rest][:, rest] + noise * torch.eye(19, dtype=torch.float64)
        expected = kernel[row, rest] @ torch.linalg.solve(covariance, y[rest])
        assert predictions[row] == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("sizes", [(4, 3, 5), (4, 0, 0), (0, 3, 0), (4, 3, 0), (4, 0, 5)])
def test_learns_from_the_groups_that_have_features(sizes):
    x = random_features(200, *sizes)
    targets = standardize(sum(group[:, 0] + group[:, 1] ** 2 for group in x if group.shape[1]))
    process = GaussianProcess()
    process.fit(rows(x, 0, 100), standardize(targets[:100]))
    scores = process(rows(x, 100, 200))
    assert scores.dtype == torch.float64
    assert float(torch.corrcoef(torch.stack([scores, targets[100:]]))[0, 1]) > 0.9


def test_predictions_from_pure_noise_are_close_to_the_mean():
    x = random_features(300)
    process = GaussianProcess()
    process.fit(rows(x, 0, 60), standardize(torch.randn(60, generator=torch.Generator().manual_seed(1))))
    assert process(rows(x, 60, 300)).std() < 0.5


def test_scores_do_not_depend_on_the_other_candidates():
    x = random_features(3000)
    process = GaussianProcess()
    process.fit(rows(x, 0, 30), standardize(x.arch[:30, 0]))
    assert process(x)[2500:2510] == pytest.approx(process(rows(x, 2500, 2510)), abs=1e-5)
    assert process(rows(x, 0, 0)).shape == (0,)
