"""The Gaussian process: its algebra against the definition, and what it makes of noise and of empty parts."""

import pytest
import torch

from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, Inputs


def inputs(count, arch=4, recipe=3, embedded=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Inputs(*(torch.randn(count, n, generator=generator) for n in (arch, recipe, embedded)))


def standardised(values):
    return ((values - values.mean()) / values.std(correction=0)).double()


def test_what_is_left_out_is_what_a_process_without_it_predicts():
    """The closed form of leaving one out equals leaving one out, at the same kernel."""
    x = inputs(20)
    y = standardised(x.arch[:, 0] * x.recipe[:, 0] + x.recipe[:, 1])
    process = GaussianProcess()
    left_out = process.fit(x, y)
    noise = process._logs["noise"].exp() + 1e-4
    products = process._products(process._inputs)
    kernel = process._kernel(products, process._logs)
    for row in (0, 7, 19):
        others = [i for i in range(20) if i != row]
        small = kernel[others][:, others] + noise * torch.eye(19, dtype=torch.float64)
        expected = kernel[row, others] @ torch.linalg.solve(small, y[others])
        assert left_out[row] == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("sizes", [(4, 3, 5), (4, 0, 0), (0, 3, 0), (4, 3, 0), (4, 0, 5)])
def test_learns_from_whatever_parts_there_are(sizes):
    x = inputs(200, *sizes)
    target = standardised(sum(part[:, 0] + part[:, 1] ** 2 for part in x if part.shape[1]))
    process = GaussianProcess()
    process.fit(x.rows(slice(100)), standardised(target[:100]))
    scores = process(x.rows(slice(100, 200)))
    assert scores.dtype == torch.float64
    assert float(torch.corrcoef(torch.stack([scores, target[100:]]))[0, 1]) > 0.9


def test_of_noise_it_predicts_next_to_nothing():
    x = inputs(300)
    process = GaussianProcess()
    process.fit(x.rows(slice(60)), standardised(torch.randn(60, generator=torch.Generator().manual_seed(1))))
    assert process(x.rows(slice(60, 300))).std() < 0.5


def test_scores_do_not_depend_on_what_is_scored_beside():
    x = inputs(3000)
    process = GaussianProcess()
    process.fit(x.rows(slice(30)), standardised(x.arch[:30, 0]))
    assert process(x)[2500:2510] == pytest.approx(process(x.rows(slice(2500, 2510))), abs=1e-5)
    assert process(x.rows(slice(0, 0))).shape == (0,)
