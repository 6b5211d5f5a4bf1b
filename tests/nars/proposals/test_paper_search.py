"""Algorithm 1: rounds of trials from a fixed pool, a stopping epoch, and networks as predictor."""

import numpy as np
import pytest

from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.proposals.early_stopping import stopping_epoch
from fbnetv3.nars.settings.search_settings import parse_settings
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import space_from_dict
from tests.nars.toy import PAPER_QUICK, SPACE, accuracy, evaluate


def test_rounds_have_round_size_trials(paper_search):
    assert [trial.round for trial in paper_search.trials] == [0] * 10 + [1] * 10 + [2] * 10
    assert {trial.phase for trial in paper_search.trials[:10]} == {"initial"}
    assert {trial.phase for trial in paper_search.trials[10:]} == {"proposed"}


def test_all_candidates_are_from_the_pool_and_distinct(paper_search):
    pool = sample_pool(Constraints(SPACE), PAPER_QUICK["pool_size"], seed=0)
    assert len(pool) == PAPER_QUICK["pool_size"]
    tried = [trial.candidate.tobytes() for trial in paper_search.trials]
    assert set(tried) <= {row.tobytes() for row in pool} and len(set(tried)) == 30
    # The first round is the beginning of the pool, which is in quasi-random order
    assert tried[:10] == [row.tobytes() for row in pool[:10]]


def test_rounds_after_the_first_end_at_the_stopping_epoch(tmp_path):
    """Chosen by the rank correlation of the first round's curves alone."""
    result = search(SPACE, evaluate, tmp_path / "out", **PAPER_QUICK, early_stopping_confidence=None)
    first = [trial for trial in result.trials if trial.round == 0]
    assert {len(trial.curve) for trial in first} == {6}
    expected = stopping_epoch(np.array([trial.curve for trial in first]), 0.92)
    assert 1 < expected < 6
    assert {len(trial.curve) for trial in result.trials if trial.round} == {expected}
    assert result.comparison_epoch == expected


@pytest.mark.parametrize("settings", [{"early_stopping_correlation": None}, {"rounds": 1}])
def test_trials_run_to_the_end_without_early_stopping(tmp_path, settings):
    result = search(SPACE, evaluate, tmp_path / "out", **{**PAPER_QUICK, **settings})
    assert {len(trial.curve) for trial in result.trials} == {6} and result.comparison_epoch == 6


def test_later_rounds_are_those_predicted_to_be_best(paper_search):
    rounds = [[accuracy(t.values) for t in paper_search.trials if t.round == number] for number in range(3)]
    assert np.median(rounds[1]) > np.median(rounds[0]) and np.median(rounds[2]) > np.median(rounds[0])
    for number in (1, 2):
        predicted = [trial.predicted for trial in paper_search.trials if trial.round == number]
        assert predicted == sorted(predicted, reverse=True)


def test_the_predictor_consists_of_networks_only(paper_search):
    plan = SearchPlan(SPACE, parse_settings(PAPER_QUICK))
    assert plan.pretrain_predictor()[0].settings.gaussian_process is False
    assert paper_search.predictor.settings.gaussian_process is False


def test_the_recommendation_is_predicted_and_need_not_be_tried(paper_search):
    (recommendation,) = paper_search.recommendations
    assert recommendation.measured is None and recommendation.trial is None
    assert recommendation.best_measured.number == paper_search.best.number
    pool = sample_pool(Constraints(SPACE), PAPER_QUICK["pool_size"], seed=0)
    assert recommendation.predicted >= paper_search.predictor.predict(pool).mean.max() - 1e-4
    assert recommendation.epoch == paper_search.comparison_epoch


def test_a_pool_that_runs_out_ends_the_search(tmp_path):
    small = space_from_dict({"name": "small", "variables": {"a": {"range": [0, 11]}}})
    settings = {**PAPER_QUICK, "rounds": 9, "round_size": 5}
    result = search(
        small, lambda candidate, epochs: [candidate["a"]] * epochs, tmp_path / "out", **settings
    )
    assert len(result.trials) == 12 and {trial.round for trial in result.trials} == {0, 1, 2}


def test_more_rounds_continue_a_finished_search(tmp_path):
    first = search(SPACE, evaluate, tmp_path / "out", **{**PAPER_QUICK, "rounds": 2})
    more = search(SPACE, evaluate, tmp_path / "out", **PAPER_QUICK, resume=True)
    assert [trial.candidate.tolist() for trial in more.trials[:20]] == [
        trial.candidate.tolist() for trial in first.trials
    ]
    assert len(more.trials) == 30
