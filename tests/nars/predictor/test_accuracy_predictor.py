"""The accuracy predictor: its errors with and without pretraining, and results that its seed determines."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from fbnetv3.errors import UsageError
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PredictorSettings
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import load_space
from tests.nars.space.spaces import FBNETV3

FEW = PredictorSettings(members=4, width=32, pretrain_epochs=2, frozen_epochs=3, finetune_epochs=3)
NETWORKS = replace(FEW, gaussian_process=False)


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


@pytest.fixture(scope="module")
def constraints(space):
    return Constraints(space, [Constraint("macs", 400e6, 800e6)])


@pytest.fixture(scope="module")
def pool(constraints):
    return sample_pool(constraints, 3000)


def smooth(space, candidates, names):
    """Return an accuracy for which each of the named variables has a best value and the first two interact."""
    x = candidates / np.maximum(space.sizes - 1, 1)
    index = [[v.name for v in space.variables].index(name) for name in names]
    return 70 - sum((x[:, i] - 0.7) ** 2 for i in index) + x[:, index[0]] * x[:, index[1]]


ARCH = ("resolution", "s4b_channels", "s5a_channels", "s3_repeat")
RECIPE = ("lr", "mixup", "drop_rate")


def train_and_score(space, pool, seed=0, labels=None, settings=FEW):
    predictor = AccuracyPredictor(space, settings, seed)
    if labels:
        predictor.pretrain(pool, labels)
    predictor.fit(pool[:40], smooth(space, pool[:40], ("lr", "mixup")))
    return predictor(pool[:100])


@pytest.mark.parametrize("pretrained", [False, True])
def test_scores_depend_on_the_seed_only(space, constraints, pool, pretrained):
    labels = constraints.column_values(pool, "macs", "params") if pretrained else None
    first = train_and_score(space, pool, 0, labels)
    torch.manual_seed(123)
    assert (first == train_and_score(space, pool, 0, labels)).all()
    seeds = [train_and_score(space, pool, seed, labels, NETWORKS) for seed in (0, 1)]
    assert not (seeds[0] == seeds[1]).any()


def test_torchs_random_state_is_restored(space, constraints, pool):
    before = torch.get_rng_state()
    train_and_score(space, pool, 0, constraints.column_values(pool, "macs"))
    assert torch.equal(before, torch.get_rng_state())


def test_fitting_again_forgets_what_was_fitted_before(space, pool):
    """Each round trains on all trials from the pretrained encoder, so a resumed search gives the same result."""
    predictor = AccuracyPredictor(space, FEW)
    predictor.fit(pool[100:150], np.arange(50.0))
    predictor.fit(pool[:40], smooth(space, pool[:40], ("lr", "mixup")))
    assert (predictor(pool[:100]) == train_and_score(space, pool)).all()


def test_pretraining_learns_macs_and_parameters_of_table_2(space, constraints, pool):
    settings = PredictorSettings(members=4, pretrain_epochs=30, pretrain_lr=1e-2)
    report = AccuracyPredictor(space, settings).pretrain(pool, pretraining_labels(constraints, pool))
    assert report.names == ("macs", "params")
    assert report.labels.shape == report.predicted.shape == (600, 2)
    assert report.r2[0] > 0.9 and report.r2[1] > 0.99
    error = ((report.labels - report.predicted) ** 2).mean(0) / report.labels.var(0, ddof=1)
    assert report.r2 == pytest.approx(1 - error, abs=1e-5)


def test_pretraining_helps_if_accuracy_is_a_function_of_the_labels(space, constraints, pool):
    """Twenty trials suffice for an accuracy that is the logarithm of the MACs, if the encoder was pretrained on it."""
    accuracies = np.log(constraints.column_values(pool, "macs")["macs"])
    errors = []
    for labels in (None, pretraining_labels(constraints, pool)):
        predictor = AccuracyPredictor(space, PredictorSettings(members=4, pretrain_epochs=20))
        if labels:
            predictor.pretrain(pool, labels)
        predictor.fit(pool[:20], accuracies[:20])
        errors.append(np.mean((predictor(pool[20:]) - accuracies[20:]) ** 2))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(
    ("part", "names"), [(None, ARCH + RECIPE), ("architecture", ARCH), ("recipe", RECIPE)]
)
def test_ranks_unseen_candidates(space, part, names):
    """In the joint space, of architectures only, and of recipes only."""
    space = space.subspace(part) if part else space
    candidates = np.random.default_rng(0).integers(0, space.sizes, (600, len(space)))
    accuracies = smooth(space, candidates, names)
    predictor = AccuracyPredictor(space, PredictorSettings(members=4, width=64))
    predictor.fit(candidates[:200], accuracies[:200])
    assert spearmanr(predictor(candidates[200:]), accuracies[200:])[0] > 0.85


def test_standard_deviations_are_those_of_the_errors(space):
    """For candidates with 40 noisy trials, errors of the noise-free value are within one deviation, mostly."""
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, space.sizes, (640, len(space)))
    values = smooth(space, candidates, ARCH + RECIPE)
    predictor = AccuracyPredictor(space, PredictorSettings(members=4, width=64))
    predictor.fit(candidates[:40], values[:40] + rng.normal(0, 0.05, 40))
    prediction = predictor.predict(candidates[40:])
    deviations = np.abs(prediction.mean - values[40:]) / prediction.std
    assert 0.45 < (deviations < 1).mean() < 0.9 and (deviations < 3).mean() > 0.95
    assert (predictor(candidates[40:]) == prediction.mean).all()


def test_deviations_grow_with_the_distance_to_the_trials(space):
    candidates = np.random.default_rng(0).integers(0, space.sizes, (40, len(space)))
    predictor = AccuracyPredictor(space, FEW)
    predictor.fit(candidates, smooth(space, candidates, ARCH + RECIPE))
    unseen = np.random.default_rng(1).integers(0, space.sizes, (40, len(space)))
    assert predictor.predict(candidates).std.max() < predictor.predict(unseen).std.min()


def test_without_a_gaussian_process_the_deviation_is_that_of_trials_left_out(space, pool):
    values = smooth(space, pool, ARCH + RECIPE)
    predictor = AccuracyPredictor(space, PredictorSettings(members=4, gaussian_process=False))
    predictor.fit(pool[:60], values[:60])
    mean, std = predictor.predict(pool[100:400])
    assert np.ptp(std) < 1e-6
    assert std[0] == pytest.approx(np.std(mean - values[100:400]), rel=0.3)
    assert (predictor.posterior_means(pool[:60]) == predictor(pool[:60])).all()


def test_the_gaussian_process_helps_where_few_variables_matter(space, pool):
    values = smooth(space, pool, RECIPE)
    errors = []
    for gaussian_process in (False, True):
        settings = PredictorSettings(members=4, width=64, gaussian_process=gaussian_process)
        predictor = AccuracyPredictor(space, settings)
        predictor.fit(pool[:60], values[:60])
        errors.append(np.mean((predictor(pool[100:]) - values[100:]) ** 2))
    assert errors[1] < errors[0]


def test_posterior_means_average_out_the_noise_of_measurements(space, pool):
    values = smooth(space, pool[:80], RECIPE)
    measured = values + np.random.default_rng(0).normal(0, 0.3, 80)
    predictor = AccuracyPredictor(space, FEW)
    predictor.fit(pool[:80], measured)
    means = predictor.posterior_means(pool[:80])
    assert np.mean((means - values) ** 2) < np.mean((measured - values) ** 2)
    assert np.corrcoef(means, measured)[0, 1] > 0.5


def test_lower_values_are_better_with_the_sign_minus_one(space, pool):
    """Predictions of negated values are the negated predictions."""
    values = smooth(space, pool[:40], ("lr", "mixup"))
    accuracy, loss = (AccuracyPredictor(space, FEW, sign=sign) for sign in (1.0, -1.0))
    accuracy.fit(pool[:40], values)
    loss.fit(pool[:40], -values)
    for method in ("predict", "posterior_means"):
        for first, second in zip(
            np.atleast_2d(getattr(accuracy, method)(pool[:50])),
            np.atleast_2d(getattr(loss, method)(pool[:50])),
            strict=True,
        ):
            np.testing.assert_allclose(np.abs(first), np.abs(second))
    assert (loss(pool[:50]) < 0).all()
    assert (loss.predict(pool[:50]).std > 0).all()


def test_pure_noise_is_predicted_by_its_mean(space, pool):
    """If nothing explains the accuracies, all parts get small weights."""
    accuracies = 70 + np.random.default_rng(0).normal(0, 1, 60)
    predictor = AccuracyPredictor(space, PredictorSettings(members=4))
    predictor.fit(pool[:60], accuracies)
    scores = predictor(pool[100:1100])
    assert scores.std() < 0.5
    assert abs(scores.mean() - accuracies.mean()) < 0.5


def test_failed_trainings_do_not_hide_differences_between_good_ones(space):
    """A third of the training runs diverge; the accuracies of the others differ by a few points."""
    candidates = np.random.default_rng(0).integers(0, space.sizes, (600, len(space)))
    value = dict(
        zip([v.name for v in space.variables], (candidates / np.maximum(space.sizes - 1, 1)).T, strict=True)
    )
    good = 70 + 4 * (value["mixup"] + value["drop_rate"])
    diverged = value["lr"] > 0.65
    accuracies = np.where(diverged, 10 + np.random.default_rng(1).uniform(0, 20, 600), good)
    assert 0.2 < diverged.mean() < 0.5
    predictor = AccuracyPredictor(space, PredictorSettings(members=4))
    predictor.fit(candidates[:60], accuracies[:60])
    scores, unseen = predictor(candidates[60:]), ~diverged[60:]
    assert spearmanr(scores[unseen], good[60:][unseen])[0] > 0.4
    assert np.median(scores[~unseen]) < 62 < np.median(scores[unseen])
    assert scores.min() >= accuracies[:60].min()


def test_two_trials_are_enough(space, pool):
    predictor = AccuracyPredictor(space, FEW)
    predictor.fit(pool[:2], np.array([70.0, 71.0]))
    assert np.isfinite(predictor(pool[:50])).all()
    assert predictor(pool[:0]).shape == (0,)


def test_scores_are_on_the_scale_of_the_accuracies(space, pool):
    scores = []
    for scale, shift in ((1, 0), (100, -7)):
        predictor = AccuracyPredictor(space, FEW)
        predictor.fit(pool[:40], scale * smooth(space, pool[:40], ("lr", "mixup")) + shift)
        scores.append(predictor(pool[:50]))
    assert scores[1] == pytest.approx(100 * scores[0] - 7, rel=1e-3)


def test_equal_accuracies_are_learned(space, pool):
    predictor = AccuracyPredictor(space, FEW)
    predictor.fit(pool[:5], np.full(5, 70.0))
    assert predictor(pool[:50]) == pytest.approx(np.full(50, 70.0))


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ([1.0], "got 1 accuracies for 3 candidates"),
        ([1.0, 2.0, float("nan")], "pass one finite accuracy per candidate, at least 2"),
        ([1.0, 2.0, float("inf")], "pass one finite accuracy per candidate, at least 2"),
    ],
)
def test_invalid_accuracies(space, pool, accuracies, message):
    with pytest.raises(UsageError, match=message):
        AccuracyPredictor(space, FEW).fit(pool[:3], np.array(accuracies))


def test_scoring_before_training(space, pool):
    with pytest.raises(UsageError, match="the predictor has not been trained yet"):
        AccuracyPredictor(space, FEW)(pool[:3])


@pytest.mark.parametrize("labels", [np.zeros(3), np.full(100, np.nan)])
def test_invalid_labels(space, pool, labels):
    with pytest.raises(UsageError, match="each label must have 100 finite values"):
        AccuracyPredictor(space, FEW).pretrain(pool[:100], {"mine": labels})


def test_pretraining_needs_enough_candidates(space, pool):
    with pytest.raises(UsageError, match="4 candidates are too few to hold out some of them"):
        AccuracyPredictor(space, FEW).pretrain(pool[:4], {"x": np.arange(4)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width: 0 must be at least 1"),
        ({"pretrain_batch_size": 0}, "pretrain_batch_size: 0 must be at least 1"),
        ({"min_batch_size": 0}, "min_batch_size: 0 must be at least 1"),
        ({"max_steps_per_epoch": 0}, "max_steps_per_epoch: 0 must be at least 1"),
        ({"gaussian_process": 1}, "gaussian_process: 1 must be true or false"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: -1 must be at least 0"),
        ({"lr": -1.0}, "lr: -1.0 must be at least 0"),
        ({"finetune_lr": float("nan")}, "finetune_lr: nan must be at least 0"),
        ({"members": 2}, "members: 2 must be at least 4"),
        ({"members": 5}, "members: 5 must be even"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(UsageError, match=rf"predictor\.{message}"):
        PredictorSettings(**settings)
