"""What a proposal sees of the trials: only segments that must have ended before it."""

import numpy as np
import pytest

from fbnetv3.nars.trials.history import stack_candidates, visible_history
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, RUNNING, WAITING, Trial
from tests.nars.proposals.proposal_loop import make_segment

EPOCHS = 4


def make_trial(number, *segments, reached=None):
    """Return a trial with segments (number, epochs, status); its curve counts the epochs."""
    if reached is None:
        reached = max((epochs for _, epochs, status in segments if status == COMPLETED), default=0)
    parts = tuple(
        make_segment(part, number, epochs, status, {"of": [part]}) for part, epochs, status in segments
    )
    curve = tuple(range(1, reached + 1))
    return Trial(number, "proposed", 0, None, np.array([number]), {}, None, None, curve, parts)


def numbers(trials):
    return [trial.number for trial in trials]


def test_completed_paused_pending_and_failed_trials():
    trials = [
        make_trial(0, (0, EPOCHS, COMPLETED)),
        make_trial(1, (1, 2, COMPLETED)),
        make_trial(2, (2, EPOCHS, RUNNING)),
        make_trial(3, (3, EPOCHS, WAITING)),
        make_trial(4, (4, EPOCHS, FAILED)),
        make_trial(5, (5, 2, COMPLETED), (6, 3, RUNNING)),
        make_trial(6, (7, 2, COMPLETED), (8, EPOCHS, FAILED)),
    ]
    history = visible_history(trials, EPOCHS)
    assert numbers(history.completed) == [0]
    assert numbers(history.paused) == [1]
    assert history.pending == {2, 3, 5}
    assert history.failed == {4, 6}
    assert [len(trial.curve) for trial in history.trials] == [4, 2, 0, 0, 0, 2, 2]
    assert history.num_segments == 9


def test_outcomes_that_came_too_early_are_not_visible():
    trials = [
        make_trial(0, (0, EPOCHS, COMPLETED)),
        make_trial(1, (1, EPOCHS, COMPLETED)),
        make_trial(2, (2, EPOCHS, FAILED)),
        make_trial(3, (3, 2, COMPLETED), (4, EPOCHS, COMPLETED)),
    ]
    history = visible_history(trials, EPOCHS, num_visible=2)
    assert numbers(history.completed) == [0, 1] and history.pending == {2, 3}
    assert not history.failed and not history.paused
    assert [len(trial.curve) for trial in history.trials] == [4, 4, 0, 0]
    # Of a continued trial, the curve up to its pause
    history = visible_history(trials, EPOCHS, num_visible=4)
    assert history.failed == {2} and history.pending == {3}
    assert history.trials[3].curve == (1, 2)
    assert not history.paused, "it is running"
    history = visible_history(trials, EPOCHS, num_visible=5)
    assert not history.pending and numbers(history.completed) == [0, 1, 3]


def test_what_is_visible_does_not_depend_on_what_else_has_ended():
    ended = [
        make_trial(0, (0, EPOCHS, COMPLETED)),
        make_trial(1, (1, 2, COMPLETED), (2, EPOCHS, COMPLETED)),
    ]
    running = [ended[0], make_trial(1, (1, 2, COMPLETED), (2, EPOCHS, RUNNING))]
    first, second = (visible_history(trials, EPOCHS, 2) for trials in (ended, running))
    assert [trial.curve for trial in first.trials] == [trial.curve for trial in second.trials]
    assert (first.pending, first.failed) == (second.pending, second.failed)


@pytest.mark.parametrize(("continues", "epochs"), [(True, 4 + 3 + 4), (False, 4 + (2 + 3) + (1 + 4))])
def test_spent_epochs_count_everything_that_was_proposed(continues, epochs):
    """An evaluator that cannot continue a trial trains it from the first epoch again; failures count too."""
    trials = [
        make_trial(0, (0, EPOCHS, COMPLETED)),
        make_trial(1, (1, 2, COMPLETED), (2, 3, FAILED)),
        make_trial(2, (3, 1, COMPLETED), (4, EPOCHS, RUNNING)),
    ]
    assert visible_history(trials, EPOCHS).spent_epochs(continues) == epochs
    assert visible_history(trials, EPOCHS, num_visible=0).spent_epochs(continues) == epochs


def test_the_state_is_that_of_the_last_proposal():
    trials = [make_trial(0, (0, 2, COMPLETED), (3, EPOCHS, WAITING)), make_trial(1, (2, EPOCHS, COMPLETED))]
    assert visible_history(trials, EPOCHS, num_visible=1).state == {"of": [3]}


def test_no_trials():
    history = visible_history([], EPOCHS)
    assert history.num_segments == history.spent_epochs(True) == 0
    assert not (history.completed or history.paused or history.pending or history.failed)


def test_candidates_are_stacked_in_order():
    trials = [make_trial(number, (number, 1, WAITING)) for number in (0, 1, 2)]
    np.testing.assert_array_equal(stack_candidates(trials), [[0], [1], [2]])
