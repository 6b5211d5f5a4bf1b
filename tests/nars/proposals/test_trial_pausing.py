"""Early stopping of the sequential search: by forecasts of their curves, trials are paused and continued."""

from collections import Counter

import numpy as np
import pytest

from fbnetv3.nars.proposals.sequential_search import SequentialSearch
from fbnetv3.nars.space.search_space import space_from_dict
from fbnetv3.nars.trials.history import visible_history
from fbnetv3.nars.trials.trial_store import PROPOSED
from tests.nars.proposals.proposal_loop import run_proposals, spent_epochs

SPACE = space_from_dict(
    {
        "name": "slow",
        "variables": {"x": {"range": [0, 15]}, "y": {"range": [0, 15]}, "slowness": {"range": [0, 7]}},
    }
)
EPOCHS = 8
SETTINGS = {"epochs": EPOCHS, "evaluations": 40, "initial_trials": 6}
BEST = 13.5


def final_value(values):
    """Return at most 13.5, for the slowest learner at (11, 4)."""
    return 10 + values["slowness"] / 2 - (values["x"] - 11) ** 2 / 20 - (values["y"] - 4) ** 2 / 20


def telling(values, epochs):
    """Return the final value minus what is the same for all candidates."""
    return [final_value(values) - 3 * (1 - epoch / EPOCHS) for epoch in range(1, epochs + 1)]


def misleading(values, epochs):
    """Return curves of which the slow ones begin up to 16 lower, and end best."""
    start = 2 + 2 * values["slowness"]
    return [final_value(values) - start * (1 - epoch / EPOCHS) for epoch in range(1, epochs + 1)]


def finished(trials):
    return [trial for trial in trials if len(trial.curve) == EPOCHS]


def best_of(trials):
    return max(trial.curve[-1] for trial in finished(trials))


@pytest.fixture(scope="module")
def continued():
    """Searches of both tasks, with an evaluator that continues trials, by name and seed."""
    return {
        (curves.__name__, seed): run_proposals(SPACE, curves, True, seed=seed, **SETTINGS)
        for curves in (telling, misleading)
        for seed in range(3)
    }


@pytest.fixture(scope="module")
def repeated():
    """Searches with an evaluator that runs trials from the start again."""
    return {
        (curves.__name__, seed): run_proposals(SPACE, curves, False, seed=seed, **SETTINGS)
        for curves in (telling, misleading)
        for seed in range(3)
    }


def select(searches, name):
    return [trials for (task, _), trials in searches.items() if task == name]


def test_early_values_rank_slow_learners_last():
    """What makes the task misleading: without the candidates' variables, the best would be stopped first."""
    candidates = [{"x": 11, "y": 4, "slowness": slowness} for slowness in range(8)]
    early, late = ([misleading(values, EPOCHS)[epoch] for values in candidates] for epoch in (1, -1))
    assert (np.diff(early) < 0).all() and (np.diff(late) > 0).all()
    assert max(late) == BEST


def test_hopeless_trials_are_paused_and_others_tried_instead(continued):
    searches = select(continued, "telling")
    paused = [[trial.number for trial in trials if len(trial.curve) < EPOCHS] for trials in searches]
    # Of about 20 trials between the first 8 and half the epochs
    assert min(map(len, paused)) >= 4 and sum(map(len, paused)) >= 20
    assert all(len(trials) > SETTINGS["evaluations"] for trials in searches)


def test_nothing_is_paused_in_the_second_half(continued):
    for trials in continued.values():
        ends = {}
        spent = 0
        late = []
        for segment in sorted((s for t in trials for s in t.segments), key=lambda s: s.number):
            if segment.trial not in ends and spent >= SETTINGS["evaluations"] * EPOCHS / 2:
                late.append(segment.epochs)
            spent += segment.epochs - ends.get(segment.trial, 0)
            ends[segment.trial] = segment.epochs
        assert len(late) >= 15 and set(late) == {EPOCHS}


def test_the_best_is_still_found_where_curves_tell(continued):
    assert [best_of(trials) for trials in select(continued, "telling")].count(BEST) >= 2


def test_the_best_is_still_found_where_slow_learners_end_best(continued):
    assert [best_of(trials) for trials in select(continued, "misleading")].count(BEST) >= 2


def test_paused_trials_are_worse_than_the_best_when_run_to_the_end(continued):
    for name in ("telling", "misleading"):
        missed = [
            final_value(trial.values) > best_of(trials)
            for trials in select(continued, name)
            for trial in trials
            if len(trial.curve) < EPOCHS
        ]
        assert missed and np.mean(missed) <= 0.02


def test_nothing_is_paused_before_there_are_curves_to_learn_from(continued):
    for trials in continued.values():
        assert {len(trial.segments) for trial in trials[:8]} == {1}
        assert {trial.epochs for trial in trials[:8]} == {EPOCHS}


def test_paused_trials_are_continued_in_segments(continued):
    for name in ("telling", "misleading"):
        several = [
            trial for trials in select(continued, name) for trial in trials if len(trial.segments) > 1
        ]
        assert len(several) >= 10
        assert any(len(trial.curve) == EPOCHS for trial in several)
        for trial in several:
            epochs = [segment.epochs for segment in trial.segments]
            assert epochs == sorted(set(epochs)) and epochs[-1] == len(trial.curve) <= EPOCHS
            assert epochs[0] == 2, "a quarter"


def test_continued_trials_take_no_turns_from_exploration(monkeypatch):
    """New trials cycle through the acquisition functions; only expected improvements give way to paused trials."""
    asked, proposed = [], []
    acquisition, propose_new = SequentialSearch._acquisition, SequentialSearch._propose_new

    def record_turn(self, turn, *arguments):
        asked.append(turn)
        return acquisition(self, turn, *arguments)

    def record_proposal(self, phase, *arguments):
        proposed.extend(asked[-1:] if phase == PROPOSED else ())
        return propose_new(self, phase, *arguments)

    monkeypatch.setattr(SequentialSearch, "_acquisition", record_turn)
    monkeypatch.setattr(SequentialSearch, "_propose_new", record_proposal)
    run_proposals(SPACE, telling, True, **SETTINGS)
    assert proposed == [number % 4 for number in range(len(proposed))]
    gave_way = Counter(asked) - Counter(proposed)
    assert gave_way and set(gave_way) <= {0, 2}


def test_some_trials_run_to_the_end_whatever_their_chance(continued):
    """Otherwise forecasts would be learned only from trials that look good."""
    later = [trial for trials in continued.values() for trial in trials[8:] if len(trial.segments) == 1]
    assert any(len(trial.curve) == EPOCHS and trial.phase == "proposed" for trial in later)


def test_an_evaluator_that_does_not_continue_is_charged_from_the_first_epoch(repeated):
    several = 0
    for trials in repeated.values():
        spent = spent_epochs(trials, continues=False)
        assert visible_history(trials, EPOCHS).spent_epochs(False) == spent
        assert 39 * EPOCHS < spent <= 40 * EPOCHS
        several += sum(len(trial.segments) > 1 for trial in trials)
        # Paused once, then run again to the end
        epochs = {tuple(segment.epochs for segment in trial.segments) for trial in trials}
        assert epochs <= {(EPOCHS,), (2,), (2, EPOCHS)}
    assert several


@pytest.mark.parametrize("name", ["telling", "misleading"])
def test_an_evaluator_that_does_not_continue_loses_little(repeated, name):
    searches = select(repeated, name)
    assert [best_of(trials) for trials in searches].count(BEST) >= 2
    assert np.mean([len(finished(trials)) for trials in searches]) >= 0.7 * SETTINGS["evaluations"]


def test_without_early_stopping_all_trials_run_to_the_end():
    trials = run_proposals(SPACE, telling, True, **SETTINGS, early_stopping=False)
    assert len(trials) == 40 and {len(trial.segments) for trial in trials} == {1}
    assert {len(trial.curve) for trial in trials} == {EPOCHS}


def test_trials_of_a_single_epoch_cannot_be_paused():
    trials = run_proposals(
        SPACE, lambda values, epochs: [final_value(values)], True, **{**SETTINGS, "epochs": 1}
    )
    assert len(trials) == 40 and {trial.epochs for trial in trials} == {1}


def test_a_trial_that_fails_when_it_is_continued_is_left_where_it_was():
    def fails_late(values, epochs):
        return None if 2 < epochs < EPOCHS else telling(values, epochs)

    trials = run_proposals(SPACE, fails_late, True, **SETTINGS)
    failed = [trial for trial in trials if trial.status == "failed"]
    assert failed and all(len(trial.curve) == 2 for trial in failed)
    assert {len(trial.segments) for trial in failed} == {2}


def test_each_budget_keeps_its_own_candidates():
    """What is hopeless for one budget is the best of another."""
    budgets = {
        "columns": {"x": lambda candidates: candidates[:, 0]},
        "budgets": [{"x": 3}, {"x": [8, None]}],
    }
    settings = {**SETTINGS, **budgets}
    trials = finished(run_proposals(SPACE, telling, True, **settings))
    for low, high, x in ((0, 3, 3), (8, 15, 11)):
        best = final_value({"x": x, "y": 4, "slowness": 7})
        assert max(t.curve[-1] for t in trials if low <= t.values["x"] <= high) > best - 0.3
