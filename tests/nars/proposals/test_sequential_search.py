"""The sequential search: which trials it proposes, in which order, and when it ends."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.sampling import random_candidates
from fbnetv3.nars.space.search_space import space_from_dict
from fbnetv3.nars.trials.history import visible_history
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, FINAL, GIVEN, INITIAL, PROPOSED, RUNNING
from tests.nars.proposals.proposal_loop import candidates_of, run_proposals, spent_epochs
from tests.nars.space.spaces import CONDITIONAL

SPACE = space_from_dict(
    {
        "name": "plane",
        "variables": {"x": {"range": [0, 15]}, "y": {"range": [0, 15]}, "kind": {"choices": ["a", "b"]}},
    }
)
SETTINGS = {"epochs": 1, "evaluations": 20, "initial_trials": 5}
COLUMNS = {"columns": {"sum": lambda candidates: candidates[:, :2].sum(1)}}


def height(values):
    """Return at most 1, at (11, 4)."""
    return (values["kind"] == "b") - (values["x"] - 11) ** 2 / 20 - (values["y"] - 4) ** 2 / 20


def measure(values, epochs):
    """Return curves that rise to the height."""
    return [height(values) - 0.5**epoch for epoch in range(1, epochs + 1)]


def heights(trials):
    return [height(trial.values) for trial in trials]


@pytest.mark.parametrize("window", [1, 4])
def test_finds_the_best_of_512_candidates_in_20_evaluations(window):
    best = [
        max(heights(run_proposals(SPACE, measure, seed=s, window=window, **SETTINGS))) for s in range(4)
    ]
    assert best.count(1.0) >= 3 and min(best) > 0.8
    rng = np.random.default_rng(0)
    random = [max(map(height, SPACE.decode_all(random_candidates(SPACE, 20, rng)))) for _ in range(200)]
    assert np.median(random) < min(best)


def test_finds_values_of_floats_and_conditional_variables():
    space = space_from_dict(CONDITIONAL)

    def measure_mixed(values, epochs):
        """Return at most 3."""
        score = 1 + (values["optimizer"] == "sgd") - abs(np.log10(values["lr"]) + 3)
        return [score + values.get("nesterov", 0) - abs(values.get("momentum", 0.5) - 0.9)] * epochs

    settings = {**SETTINGS, "evaluations": 30, "initial_trials": 8}
    best = [
        max(trial.curve[0] for trial in run_proposals(space, measure_mixed, seed=seed, **settings))
        for seed in range(2)
    ]
    rng = np.random.default_rng(0)
    random = [
        max(measure_mixed(values, 1)[0] for values in space.decode_all(random_candidates(space, 30, rng)))
        for _ in range(100)
    ]
    # A third of the distance to the best that random search has left
    assert 3 - min(best) < (3 - np.median(random)) / 3


def test_phases_follow_one_another():
    first = [{"x": 3, "y": 3, "kind": "a"}, {"x": 0, "y": 15, "kind": "b"}]
    trials = run_proposals(SPACE, measure, **SETTINGS, first_candidates=first, final_share=0.1)
    assert [trial.phase for trial in trials] == [GIVEN] * 2 + [INITIAL] * 5 + [PROPOSED] * 11 + [FINAL] * 2
    assert [trial.values for trial in trials[:2]] == first
    # Only what a model has proposed is predicted
    assert [trial.predicted is not None for trial in trials] == [False] * 7 + [True] * 13
    assert all(trial.predicted_std > 0 for trial in trials[7:])


def test_predictions_are_in_the_units_of_the_values():
    def measure_large(values, epochs):
        return [1000 + 50 * height(values)] * epochs

    trials = run_proposals(SPACE, measure_large, **SETTINGS)
    errors = [abs(trial.predicted - trial.curve[0]) for trial in trials[-5:]]
    assert max(errors) < 25, "half of what the kind makes"


def test_initial_trials_spread_over_the_space():
    trials = run_proposals(SPACE, measure, epochs=1, evaluations=16, initial_trials=16)
    quadrants = Counter((trial.values["x"] > 7, trial.values["y"] > 7) for trial in trials)
    assert len(quadrants) == 4 and min(quadrants.values()) >= 3


def test_a_first_candidate_that_is_also_initial_is_tried_once():
    initial = run_proposals(SPACE, measure, **SETTINGS)[0].values
    trials = run_proposals(SPACE, measure, **SETTINGS, first_candidates=[initial, initial])
    assert trials[0].phase == GIVEN and trials[0].values == initial
    assert len(set(candidates_of(trials))) == len(trials) == 20


@pytest.mark.parametrize("settings", [{}, {"window": 4}, {"epochs": 8}, {"evaluations": 3}])
def test_no_candidate_is_proposed_twice(settings):
    trials = run_proposals(SPACE, measure, True, **{**SETTINGS, **settings})
    assert len(set(candidates_of(trials))) == len(trials) >= settings.get("evaluations", 20)


def test_candidates_depend_on_the_seed_only():
    first, again, other = (run_proposals(SPACE, measure, seed=seed, **SETTINGS) for seed in (3, 3, 4))
    assert candidates_of(first) == candidates_of(again)
    assert not set(candidates_of(first)[:5]) & set(candidates_of(other)[:5])


def test_minimizing_mirrors_maximizing_the_negated_values():
    settings = {**SETTINGS, "epochs": 8, "window": 2, **COLUMNS, "budgets": [{"sum": 9}, {}]}
    highest = run_proposals(SPACE, measure, True, **settings)

    def measure_negated(values, epochs):
        return [-value for value in measure(values, epochs)]

    lowest = run_proposals(SPACE, measure_negated, True, **settings, direction="minimize")
    assert candidates_of(highest) == candidates_of(lowest)
    assert [t.epochs for t in highest] == [t.epochs for t in lowest]
    for up, down in zip(highest, lowest, strict=True):
        assert (up.predicted is None) == (down.predicted is None)
        if up.predicted is not None:
            assert up.predicted == pytest.approx(-down.predicted) and up.predicted_std == pytest.approx(
                down.predicted_std
            )


def test_any_units_give_the_same_trials():
    """As for percent and shares of one."""

    def scaled(values, epochs):
        return [100 * value - 40 for value in measure(values, epochs)]

    first, second = (run_proposals(SPACE, f, **SETTINGS) for f in (measure, scaled))
    assert candidates_of(first)[:12] == candidates_of(second)[:12]


def test_trials_of_a_window_are_proposed_without_the_results_of_one_another():
    """Only what is within the window before a trial may change it."""
    settings = SearchSettings(**SETTINGS, window=4)
    trials = run_proposals(SPACE, measure, window=4, **SETTINGS, max_segments=12)
    proposer = SearchPlan(SPACE, settings).build_proposer()
    assert [proposer.num_required(number) for number in (0, 4, 5, 8, 12)] == [0, 0, 2, 5, 9]
    fresh = SearchPlan(SPACE, settings).build_proposer()
    unfinished = [*trials[:9], *(_without_result(trial) for trial in trials[9:])]
    histories = [visible_history(items, 1, proposer.num_required(12)) for items in (trials, unfinished)]
    (first,), (second,) = proposer.propose(histories[0]), fresh.propose(histories[1])
    assert first.candidate.tolist() == second.candidate.tolist()
    assert first.candidate.tobytes() not in {trial.candidate.tobytes() for trial in trials}


def _without_result(trial):
    return replace(trial, curve=(), segments=(replace(trial.segments[0], status=RUNNING),))


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"window": 3, "budgets": [{"sum": 8}, {"sum": 20}]}, {"epochs": 3}]
)
def test_evaluations_limit_the_epochs_of_all_trials(continues, early_stopping, settings):
    settings = {**SETTINGS, **COLUMNS, "epochs": 8, **settings, "early_stopping": early_stopping}
    trials = run_proposals(SPACE, measure, continues, **settings)
    spent, limit = spent_epochs(trials, continues), 20 * settings["epochs"]
    assert limit - settings["epochs"] < spent <= limit
    if not early_stopping:
        assert spent == limit and len(trials) == 20


@pytest.mark.parametrize("evaluations", [1, 4, 6])
def test_few_evaluations_are_kept_too(evaluations):
    trials = run_proposals(SPACE, measure, **{**SETTINGS, "evaluations": evaluations})
    assert len(trials) == evaluations


@pytest.mark.parametrize(("share", "counts"), [(0.0, [1, 1, 1]), (0.3, [2, 2, 2]), (0.2, [2, 1, 1])])
def test_the_last_trials_are_the_best_predicted_for_each_budget(share, counts):
    budgets = {"sum_6": {"sum": 6}, "sum_12": {"sum": 12}, "sum_from_20": {"sum": [20, None]}}
    trials = run_proposals(
        SPACE, measure, **SETTINGS, **COLUMNS, budgets=list(budgets.values()), final_share=share
    )
    final = [trial for trial in trials if trial.phase == FINAL]
    assert trials[-len(final) :] == final
    assert [sum(trial.budget == name for trial in final) for name in budgets] == counts
    for trial in final:
        total = trial.candidate[:2].sum()
        assert {"sum_6": total <= 6, "sum_12": total <= 12, "sum_from_20": total >= 20}[trial.budget]


def test_the_best_of_each_budget_is_found():
    budgets = [{"sum": 6}, {"sum": 12}, {"sum": [18, None]}]
    settings = {**SETTINGS, **COLUMNS, "evaluations": 40, "budgets": budgets}
    trials = run_proposals(SPACE, measure, **settings)
    everything = [{"x": x, "y": y, "kind": "b"} for x in range(16) for y in range(16)]
    for low, high in ((0, 6), (0, 12), (18, 30)):
        best = max(height(v) for v in everything if low <= v["x"] + v["y"] <= high)
        reached = max(height(t.values) for t in trials if low <= t.candidate[:2].sum() <= high)
        assert reached > best - 0.11, "at most one step from it"


def test_every_trial_meets_the_constraints():
    trials = run_proposals(SPACE, measure, **SETTINGS, **COLUMNS, constraints={"sum": [5, 10]})
    totals = np.array([trial.candidate[:2].sum() for trial in trials])
    assert ((totals >= 5) & (totals <= 10)).all() and len(trials) == 20
    best = max(height({"x": x, "y": 10 - x, "kind": "b"}) for x in range(11))
    assert max(heights(trials)) == best


@pytest.mark.parametrize("settings", [{}, {"window": 4}, {"initial_trials": 30}, {"epochs": 8}])
def test_a_search_ends_when_a_small_space_is_exhausted(settings):
    small = space_from_dict(
        {"name": "small", "variables": {"a": {"range": [0, 10]}, "b": {"choices": [1, 2]}}}
    )
    settings = {**SETTINGS, "evaluations": 100, **settings}
    trials = run_proposals(
        small, lambda values, epochs: [values["a"] / values["b"]] * epochs, True, **settings
    )
    assert len(set(candidates_of(trials))) == len(trials) == 22


def test_max_trials_ends_a_search_with_final_trials():
    budgets = [{"sum": 8}, {"sum": 20}]
    trials = run_proposals(SPACE, measure, **SETTINGS, **COLUMNS, budgets=budgets, max_trials=12)
    assert [trial.phase for trial in trials] == [INITIAL] * 5 + [PROPOSED] * 5 + [FINAL] * 2


def test_max_trials_limits_candidates_and_not_epochs():
    trials = run_proposals(SPACE, measure, True, **{**SETTINGS, "epochs": 8}, max_trials=17)
    assert len(trials) == 17


def test_min_gain_ends_a_search_that_is_not_expected_to_improve():
    settings = {**SETTINGS, "evaluations": 60}
    trials = run_proposals(SPACE, measure, **settings, min_gain=0.01)
    assert 10 < len(trials) < 50
    assert max(heights(trials)) == 1.0
    assert trials[-1].phase == FINAL
    longer = run_proposals(SPACE, measure, **settings, min_gain=1e-9)
    assert len(longer) > len(trials)


def test_min_gain_is_in_the_units_of_the_values():
    def percent(values, epochs):
        return [100 * value for value in measure(values, epochs)]

    settings = {**SETTINGS, "evaluations": 60}
    first = run_proposals(SPACE, measure, **settings, min_gain=0.01)
    second = run_proposals(SPACE, percent, **settings, min_gain=1.0)
    assert abs(len(first) - len(second)) <= 3


def test_min_gain_gives_each_budget_a_final_trial():
    budgets = [{"sum": 8}, {"sum": 20}]
    settings = {**SETTINGS, **COLUMNS, "evaluations": 60, "budgets": budgets}
    trials = run_proposals(SPACE, measure, **settings, min_gain=0.05)
    assert len(trials) < 55
    assert {trial.budget for trial in trials if trial.phase == FINAL} == {"sum_8", "sum_20"}


@pytest.mark.parametrize("window", [1, 4])
def test_failed_candidates_are_skipped(window):
    def fails_here_and_there(values, epochs):
        return None if (7 * values["x"] + 3 * values["y"]) % 10 < 3 else measure(values, epochs)

    trials = run_proposals(SPACE, fails_here_and_there, window=window, **{**SETTINGS, "evaluations": 30})
    assert len(set(candidates_of(trials))) == len(trials) == 30
    statuses = Counter(trial.status for trial in trials)
    assert statuses[FAILED] >= 5 and statuses[COMPLETED] >= 10
    assert max(heights(trial for trial in trials if trial.status == COMPLETED)) == 1


def test_a_search_whose_trials_all_fail_ends():
    trials = run_proposals(SPACE, lambda values, epochs: None, **SETTINGS)
    assert len(set(candidates_of(trials))) == len(trials) == 20


def test_equal_values_end_like_any_others():
    trials = run_proposals(SPACE, lambda values, epochs: [1.0] * epochs, True, **{**SETTINGS, "epochs": 4})
    assert len(trials) >= 20


@pytest.mark.parametrize("outlier", [-1e6, 1e30])
def test_a_value_far_off_does_not_blind_a_search(outlier):
    """As of a diverged training, or a measurement gone wrong."""
    direction = "maximize" if outlier < 0 else "minimize"
    sign = 1 if outlier < 0 else -1

    def with_outlier(values, epochs):
        return [outlier if values["x"] < 2 else sign * height(values)] * epochs

    best = [
        max(heights(run_proposals(SPACE, with_outlier, seed=seed, direction=direction, **SETTINGS)))
        for seed in range(4)
    ]
    assert np.median(best) > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_a_region_in_which_trials_fail_is_left(seed):
    """Values rise toward it, so that the model alone would propose nothing else."""
    space = space_from_dict(
        {"name": "memory", "variables": {"width": {"range": [1, 32]}, "depth": {"range": [1, 32]}}}
    )

    def run_out_of_memory(values, epochs):
        size = values["width"] * values["depth"]
        return None if size > 300 else [size / 10 + values["depth"] / 100]

    trials = run_proposals(space, run_out_of_memory, epochs=1, evaluations=40, initial_trials=6, seed=seed)
    failed = [trial.status == "failed" for trial in trials]
    assert sum(failed[6:]) <= 17
    assert sum(failed[30:]) <= 5
    assert max(trial.curve[-1] for trial in trials if trial.curve) > 29
