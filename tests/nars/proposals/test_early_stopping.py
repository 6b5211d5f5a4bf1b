"""Early stopping by rank correlation."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from fbnetv3.nars.proposals.early_stopping import rank_correlations, stopping_epoch


@pytest.fixture
def curves():
    """Learning curves whose noise fades, so late epochs rank like the last."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(40, 1))
    return final + rng.normal(size=(40, 10)) * np.linspace(2, 0, 10)


def test_rank_correlations_equal_scipys(curves):
    expected = [spearmanr(curves[:, epoch], curves[:, -1]).statistic for epoch in range(10)]
    np.testing.assert_allclose(rank_correlations(curves), expected)
    tied = np.round(curves)
    expected = [spearmanr(tied[:, epoch], tied[:, -1]).statistic for epoch in range(10)]
    np.testing.assert_allclose(rank_correlations(tied), expected)


def test_the_first_epoch_above_the_threshold(curves):
    correlations = rank_correlations(curves)
    epoch = stopping_epoch(curves, 0.92)
    assert 1 < epoch < 10
    assert correlations[epoch - 1] > 0.92
    assert (correlations[: epoch - 1] <= 0.92).all()


def test_a_correlation_that_only_the_last_epoch_exceeds(curves):
    assert stopping_epoch(curves, 0.9999) == 10


def test_equal_accuracies_have_no_rank_correlation():
    curves = np.ones((10, 4))
    assert np.isnan(rank_correlations(curves)).all()
    assert stopping_epoch(curves) == 4


def test_fewer_than_five_curves_do_not_stop_early():
    assert stopping_epoch(np.arange(12.0).reshape(4, 3)) == 3
    assert stopping_epoch(np.arange(15.0).reshape(5, 3)) == 1


def test_eight_curves_that_agree_do_not_choose_an_epoch_with_confidence():
    curves = np.arange(24.0).reshape(8, 3)
    assert stopping_epoch(curves) == 1
    assert stopping_epoch(curves, confidence=0.95) == 3
    assert stopping_epoch(np.arange(120.0).reshape(40, 3), confidence=0.95) == 1


@pytest.mark.parametrize("num_curves", [12, 48])
def test_an_epoch_that_does_not_qualify_is_chosen_as_rarely_as_the_confidence_says(num_curves):
    # Normal values with a rank correlation of 0.92: Pearson's is 2 sin(pi 0.92 / 6)
    correlation = 2 * np.sin(np.pi * 0.92 / 6)
    rng = np.random.default_rng(0)
    last = rng.normal(size=(2000, num_curves))
    first = correlation * last + np.sqrt(1 - correlation**2) * rng.normal(size=last.shape)
    searches = np.stack([first, last], 2)
    without, at_95 = (
        np.mean([stopping_epoch(curves, 0.92, confidence) == 1 for curves in searches])
        for confidence in (None, 0.95)
    )
    assert 0.3 < without < 0.7
    assert 0.01 < at_95 < 0.07
