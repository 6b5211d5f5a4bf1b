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
