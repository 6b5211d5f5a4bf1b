"""Forecasts of learning curves: honest deviations, and slow learners known by their variables."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.curve_forecast import CurveForecaster
from fbnetv3.nars.space.sampling import random_candidates
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict(
    {
        "name": "curves",
        "variables": {
            "size": {"range": [0.0, 1.0]},
            "lr": {"range": [0.0, 1.0]},
            "slowness": {"range": [0.0, 1.0]},
        },
    }
)
EPOCHS = 10


def final_values(candidates):
    size, lr, slowness = SPACE.positions(candidates).T
    return 70 + 5 * size - 12 * (lr - 0.6) ** 2 + 3 * slowness


def learning_curves(candidates, noise, rng):
    """Return accuracies, (N, EPOCHS), that approach the final values, the more slowly the higher the slowness.

    With each epoch, they show more of a part of the final value that no variable explains.
    """
    epochs = np.arange(1, EPOCHS + 1)
    slowness = SPACE.positions(candidates)[:, 2:]
    speed = 1.5 + 2 * slowness
    left = (20 + 30 * slowness) * (np.exp(-epochs / speed) - np.exp(-EPOCHS / speed))
    unexplained = rng.normal(size=(len(candidates), 1)) * epochs / EPOCHS
    values = final_values(candidates)[:, None] - left + unexplained
    return values + rng.normal(0, noise, (len(candidates), EPOCHS))


def forecast(seed, num_known=20, num_new=60, epoch=3, noise=0.3, curves_of=learning_curves):
    """Return the forecaster, the prediction for new curves, and their transformed values after the last epoch."""
    rng = np.random.default_rng(seed)
    known, new = random_candidates(SPACE, num_known, rng), random_candidates(SPACE, num_new, rng)
    known_curves, new_curves = curves_of(known, noise, rng), curves_of(new, noise, rng)
    transform = AccuracyTransform.fit(known_curves[:, -1])
    targets = transform.transform(known_curves[:, -1])
    others = new_curves[:5, epoch - 1]
    forecaster = CurveForecaster(SPACE, epoch, known, known_curves, targets, others)
    prediction = forecaster.forecast(new, new_curves[:, :epoch])
    return forecaster, prediction, transform.transform(new_curves[:, -1])


def standard_errors(num_seeds, **options):
    """Return by how many deviations final values exceed the forecasts."""
    results = [forecast(seed, **options)[1:] for seed in range(num_seeds)]
    return np.concatenate([(final - prediction.mean) / prediction.std for prediction, final in results])


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_forecasts_are_calibrated(epoch):
    """Of a normal distribution, 95% are within two deviations; somewhat more is on the safe side."""
    errors = standard_errors(8, num_known=40, epoch=epoch)
    assert np.mean(np.abs(errors) < 2) > 0.9
    assert np.mean(np.abs(errors) < 0.5) < 0.6, "nor are they useless"


def test_with_few_curves_hardly_any_winner_would_be_missed():
    """A search pauses trials with a chance below 1%, by Student's distribution with 4 degrees of freedom."""
    errors = standard_errors(16, num_known=12)
    assert np.mean(errors > student_t.ppf(0.99, 4)) < 0.03


def test_forecasts_from_later_epochs_are_more_certain():
    deviations = [
        np.mean([forecast(seed, 40, epoch=epoch)[1].std.mean() for seed in range(3)]) for epoch in (1, 5, 9)
    ]
    assert deviations[0] > deviations[1] > deviations[2]
    errors = [np.mean([_error(forecast(seed, 40, epoch=epoch)) for seed in range(3)]) for epoch in (1, 9)]
    assert errors[1] < errors[0] / 2


def _error(result):
    _, prediction, final = result
    return np.sqrt(np.mean((prediction.mean - final) ** 2))


def test_forecasts_explain_most_of_the_differences():
    for seed in range(3):
        result = forecast(seed, num_known=40)
        assert _error(result) < 0.6 * result[2].std()


def test_slow_learners_are_recognized_by_their_variable():
    """Of two candidates with the same start of their curves, the slow learner ends higher."""
    rng = np.random.default_rng(0)
    known = random_candidates(SPACE, 30, rng)
    curves = learning_curves(known, 0.1, rng)
    transform = AccuracyTransform.fit(curves[:, -1])
    targets = transform.transform(curves[:, -1])
    forecaster = CurveForecaster(SPACE, 3, known, curves, targets, np.zeros(0))
    same = {"size": 0.5, "lr": 0.5}
    candidates = np.stack([SPACE.encode({**same, "slowness": slowness}) for slowness in (0.1, 0.9)])
    start = np.repeat(np.median(curves[:, :3], axis=0)[None], 2, axis=0)
    prediction = forecaster.forecast(candidates, start)
    assert prediction.mean[1] - prediction.mean[0] > 2 * prediction.std.max()


def test_the_rank_so_far_would_mislead():
    """Slow learners rank low early and end high; forecasts do not follow the present rank."""
    early = []

    def recorded(candidates, noise, rng):
        curves = learning_curves(candidates, noise, rng)
        early.append(curves[:, 2])
        return curves

    _, prediction, final = forecast(1, num_known=30, curves_of=recorded)
    correlations = [np.corrcoef(values, final)[0, 1] for values in (early[-1], prediction.mean)]
    assert correlations[0] < 0.3 and correlations[1] > 0.8


def test_curves_that_say_nothing_give_wide_forecasts():
    def unrelated(candidates, noise, rng):
        return rng.normal(70, 3, (len(candidates), EPOCHS))

    errors = standard_errors(5, num_known=40, curves_of=unrelated)
    assert np.mean(np.abs(errors) < 2) > 0.9
    _, prediction, final = forecast(0, num_known=40, curves_of=unrelated)
    assert prediction.std.mean() > 0.8 * final.std()


def test_leaving_one_out_is_as_good_as_new_curves():
    """Forecasts of the known curves from one another are no better than those of new ones."""
    for seed in range(3):
        forecaster, prediction, _ = forecast(seed, num_known=40)
        left_out = forecaster.leave_one_out()
        assert left_out.mean.shape == left_out.std.shape == (40,)
        assert left_out.std.mean() == pytest.approx(prediction.std.mean(), rel=0.35)


def test_the_units_of_accuracy_do_not_matter():
    def shares(candidates, noise, rng):
        return learning_curves(candidates, noise, rng) / 100

    _, percent, _ = forecast(0)
    _, share, _ = forecast(0, curves_of=shares)
    np.testing.assert_allclose(share.mean, percent.mean, atol=1e-3)
    np.testing.assert_allclose(share.std, percent.std, rtol=1e-2)


def test_a_forecaster_that_is_not_fitted_again_only_learns_from_the_new_trials():
    rng = np.random.default_rng(0)
    known = random_candidates(SPACE, 25, rng)
    curves = learning_curves(known, 0.3, rng)
    targets = AccuracyTransform.fit(curves[:, -1]).transform(curves[:, -1])
    first = CurveForecaster(SPACE, 3, known, curves, targets, np.zeros(0))
    parameters = first.process.parameters.tolist()
    second = CurveForecaster(SPACE, 3, known, curves, targets, np.zeros(0), parameters, refit=False)
    assert second.process.parameters.tolist() == parameters
    np.testing.assert_allclose(
        second.forecast(known[:5], curves[:5]).mean, first.forecast(known[:5], curves[:5]).mean
    )
