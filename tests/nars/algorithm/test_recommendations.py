"""Recommendations: verified trials, what was measured beside what was predicted, and noise averaged out."""

import itertools
import json

import numpy as np
import pytest

from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.report.recommendation_rows import recommendation_rows
from fbnetv3.nars.report.saved_search import load
from fbnetv3.nars.space.search_space import space_from_dict
from tests.nars.toy import FAST, spent

BOUNDS = {"spent_12": 12, "spent_18": 18}
PLANE = space_from_dict(
    {"name": "plane", "variables": {"x": {"range": [0.0, 1.0]}, "y": {"range": [0.0, 1.0]}}}
)
LINE = space_from_dict({"name": "line", "variables": {"x": {"range": [0.0, 1.0]}}})
ONE_EPOCH = {"epochs": 1, "predictor": FAST, "executor": "serial", "window": 1}
SHORT = {**ONE_EPOCH, "evaluations": 12}


def identity(candidate, epochs):
    return [candidate["x"]]


def completed_within(result, limit):
    return [t for t in result.trials if len(t.curve) == 6 and spent(t.candidate[None])[0] <= limit]


def test_there_is_one_for_each_budget_and_it_is_within(budgeted_search):
    recommendations = budgeted_search.recommendations
    assert [recommendation.name for recommendation in recommendations] == [*BOUNDS]
    for recommendation, limit in zip(recommendations, BOUNDS.values(), strict=True):
        assert recommendation.columns == {"spent": spent(recommendation.candidate.vector[None])[0]}
        assert recommendation.columns["spent"] <= limit
    assert recommendations[1].measured >= recommendations[0].measured


def test_it_is_a_trial_that_ran_to_the_end_and_the_best_by_posterior_mean(budgeted_search):
    for recommendation, limit in zip(budgeted_search.recommendations, BOUNDS.values(), strict=True):
        trials = completed_within(budgeted_search, limit)
        means = budgeted_search.predictor.posterior_means(np.array([trial.candidate for trial in trials]))
        assert recommendation.trial.number == trials[int(np.argmax(means))].number
        assert recommendation.trial.status == "completed"
        assert recommendation.measured == recommendation.trial.value(6)
        np.testing.assert_array_equal(recommendation.candidate.vector, recommendation.trial.candidate)


def test_provenance_has_the_measured_beside_the_predicted_value(budgeted_search):
    for recommendation, limit in zip(budgeted_search.recommendations, BOUNDS.values(), strict=True):
        provenance = json.loads(recommendation.files.provenance.read_text())
        assert provenance["values"] == dict(recommendation.candidate)
        assert provenance["measured"] == recommendation.measured == provenance["trial"]["value"]
        assert provenance["predicted"] == recommendation.predicted and provenance["predicted_std"] > 0
        assert abs(provenance["predicted"] - provenance["measured"]) < 3
        (constraint,) = provenance["constraints"]
        assert "spent" in constraint and str(limit) in constraint
        assert (provenance["epoch"], provenance["trials"]) == (6, len(budgeted_search.trials))
        best = max(trial.value(6) for trial in completed_within(budgeted_search, limit))
        assert provenance["best_measured"]["value"] == best


def test_the_trial_that_verified_a_prediction_is_named(budgeted_search):
    for recommendation in budgeted_search.recommendations:
        trial = recommendation.best_predicted
        assert (trial.phase, trial.budget) == ("final", recommendation.name)
        assert recommendation.measured >= trial.value(6) - 0.5


def test_a_budget_without_a_trial_gets_the_best_predicted(tmp_path):
    """A budget that is added after the trials, between the values of two of them."""
    settings = {**ONE_EPOCH, "evaluations": 12}
    settings["columns"] = {"x": lambda candidates: PLANE.positions(candidates)[:, 0]}

    def slope(candidate, epochs):
        return [candidate["x"] + candidate["y"]]

    result = search(PLANE, slope, tmp_path / "out", **settings)
    tried = sorted(trial.values["x"] for trial in result.trials)
    low, high = max(itertools.pairwise(tried), key=lambda pair: pair[1] - pair[0])
    bounds = [low + (high - low) / 10, high - (high - low) / 10]
    result = search(PLANE, slope, tmp_path / "out", **settings, budgets=[{"x": bounds}], resume=True)
    (recommendation,) = result.recommendations
    assert bounds[0] <= recommendation.candidate["x"] <= bounds[1]
    assert recommendation.trial is None and recommendation.measured is None
    assert recommendation.candidate["y"] > 0.5


def noisy_value(candidate, epochs):
    """Return at most 1 at (0.6, 0.3), with noise of deviation 0.3."""
    return [true_value(candidate) + np.random.default_rng(candidate.seed).normal(0, 0.3)]


def true_value(values):
    return 1 - 4 * (values["x"] - 0.6) ** 2 - 4 * (values["y"] - 0.3) ** 2


@pytest.fixture(scope="module")
def noisy_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    settings = {**ONE_EPOCH, "evaluations": 18}
    return [search(PLANE, noisy_value, folder / str(seed), **settings, seed=seed) for seed in range(6)]


def test_noise_is_averaged_out(noisy_results):
    """The luckiest measurement is not the best candidate."""
    recommended = [true_value(result.recommendations[0].candidate) for result in noisy_results]
    luckiest = [true_value(result.best.values) for result in noisy_results]
    assert np.mean(recommended) > np.mean(luckiest)


def test_predictions_of_what_is_recommended_are_closer_to_the_truth_than_measurements(noisy_results):
    errors = [
        (item.measured - true_value(item.candidate), item.predicted - true_value(item.candidate))
        for result in noisy_results
        for item in result.recommendations
    ]
    measured, predicted = np.abs(errors).mean(0)
    assert predicted < measured


def test_a_budget_that_the_recommendation_breaks_is_flagged(tmp_path, caplog):
    def latency(candidates):
        # Slower, one at a time
        return candidates[:, 0] / 10**6 + 2.0 * (len(candidates) == 1)

    result = search(
        LINE, identity, tmp_path, columns={"latency": latency}, budgets=[{"latency": 0.5}], **SHORT
    )
    (recommendation,) = result.recommendations
    bound = f"latency <= 0.5 ({2 + recommendation.candidate['x']:,.6g})"
    assert recommendation.broken == (bound,)
    assert json.loads(recommendation.files.provenance.read_text())["broken"] == [bound]
    assert caplog.messages == [f"latency_0.5: the recommended candidate is outside the budget: {bound}"]
    (row,) = recommendation_rows(load(tmp_path))
    assert row["reason"].endswith(f" Computed again, it is outside the budget: {bound}.")


def test_a_column_that_varies_is_named(tmp_path, caplog):
    rng = np.random.default_rng(0)
    columns = {"latency": lambda candidates: rng.uniform(1, 2, len(candidates))}
    search(LINE, identity, tmp_path, columns=columns, **SHORT)
    (message,) = caplog.messages
    assert message.startswith("column latency: its function returned 1.")


def test_budgets_that_are_kept_are_not_flagged(budgeted_search):
    assert [recommendation.broken for recommendation in budgeted_search.recommendations] == [(), ()]


def test_results_are_described_in_a_line(tmp_path):
    result = search(LINE, identity, tmp_path, **SHORT)
    (recommendation,) = result.recommendations
    assert repr(result.space) == "Space(line: 1 variable)"
    assert repr(result) == f"SearchResult(line: 12 trials in {tmp_path}; {recommendation})"
    assert repr(recommendation).startswith(f"Recommendation(best: measured {recommendation.measured:.5g}, ")
    assert repr(recommendation).endswith(f", trial {recommendation.trial.number})")
    assert len(repr(recommendation)) < 80
