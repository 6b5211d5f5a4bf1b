"""Trials in segments: what evaluators continue, what they repeat, and what they delete at the end."""

import contextlib

import pytest

from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.trial_runner import TrialRunner
from fbnetv3.nars.execution.attempts import Outcome, SearchContext
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.report.saved_search import load
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, Proposal, TrialStore
from tests.nars.toy import QUICK, SPACE, evaluate


class Continues:
    """Keeps the epoch that a trial has reached in its folder."""

    continues = True

    def __init__(self):
        self.trained_epochs = 0
        self.cleaned_up = []

    def __call__(self, candidate, epochs):
        state = candidate.folder / "epoch"
        start = int(state.read_text()) if state.exists() else 0
        self.trained_epochs += epochs - start
        state.write_text(str(epochs))
        return evaluate(candidate, epochs)

    def clean_up(self, folders):
        self.cleaned_up += [*folders]


def test_a_continued_trial_costs_only_the_epochs_that_are_left(tmp_path):
    evaluator = Continues()
    result = search(SPACE, evaluator, tmp_path, **QUICK)
    assert any(trial.epochs < QUICK["epochs"] for trial in result.trials)
    assert evaluator.trained_epochs == sum(trial.epochs for trial in result.trials)
    assert evaluator.trained_epochs <= QUICK["epochs"] * QUICK["evaluations"]
    # Each trial's files once, when no trial is continued anymore
    assert evaluator.cleaned_up == [tmp_path / "trials" / f"{n:05d}" for n in range(len(result.trials))]


def test_trials_of_a_search_that_was_stopped_can_still_be_continued(tmp_path):
    evaluator = Continues()
    search(SPACE, evaluator, tmp_path, on_progress=lambda progress: len(progress.trials) < 5, **QUICK)
    assert evaluator.trained_epochs and not evaluator.cleaned_up


class TwoSegments:
    """Trains two candidates to the second epoch, then both to the third."""

    proposals = (
        Proposal(2, SPACE.encode(dict.fromkeys(("x0", "x1", "x2", "x3"), 0) | {"kind": "a", "lr": 1})),
        Proposal(2, SPACE.encode(dict.fromkeys(("x0", "x1", "x2", "x3"), 1) | {"kind": "a", "lr": 1})),
        Proposal(3, trial=0),
        Proposal(3, trial=1),
    )

    def num_required(self, number):
        return number

    def propose(self, history):
        return list(self.proposals[history.num_segments : history.num_segments + 1])


def run_two_segments(evaluator, folder, continues=True, epochs_done=None):
    """Return the messages and the trials; the epochs after each event are added to `epochs_done`."""
    messages = []

    def on_progress(progress):
        messages.append(progress.message)
        if epochs_done is not None:
            epochs_done.append(progress.epochs_done)

    settings = SearchSettings(epochs=3)
    with contextlib.closing(TrialStore(folder, create=True)) as store:
        runner = TrialRunner(settings, SPACE, TwoSegments(), store, 6, on_progress, continues)
        with open_executor("serial", SearchContext(SPACE, evaluator), ExecutorOptions()) as executor:
            runner.run(executor)
    return [message for message in messages if message], runner.trials


def test_values_that_change_when_a_trial_is_run_again_replace_the_old_with_one_warning(tmp_path):
    calls = []

    def noisy(candidate, epochs):
        calls.append(candidate.number)
        return [10.0 + 0.25 * len(calls)] * epochs

    messages, trials = run_two_segments(noisy, tmp_path)
    assert calls == [0, 1, 0, 1]
    assert [trial.curve for trial in trials] == [(10.75,) * 3, (11.0,) * 3]
    (message,) = messages
    assert message.startswith(
        "trial 0: the values up to epoch 2, where it was paused, now differ by up to 0.5"
    )


@pytest.mark.parametrize(("continues", "expected"), [(True, [0, 2, 4, 5, 6]), (False, [0, 2, 4, 7, 10])])
def test_progress_counts_the_epochs_that_were_run(tmp_path, continues, expected):
    epochs_done = []
    run_two_segments(lambda candidate, epochs: [1.0] * epochs, tmp_path, continues, epochs_done)
    assert sorted(set(epochs_done)) == expected


def test_a_saved_search_counts_epochs_as_they_were_run(tmp_path):
    """`search_net.py status` and `watch` read the folder."""
    folders = {evaluator: tmp_path / type(evaluator).__name__ for evaluator in (Continues(), evaluate)}
    continued, repeated = (
        load(search(SPACE, evaluator, folder, **QUICK).folder) for evaluator, folder in folders.items()
    )
    assert continued.epochs_done == sum(len(trial.curve) for trial in continued.trials)
    assert repeated.epochs_done == sum(
        segment.epochs for trial in repeated.trials for segment in trial.segments
    )


@pytest.mark.parametrize("rounding", [0, 1e-7])
def test_equal_values_of_a_repeated_trial_are_no_reason_for_a_warning(tmp_path, rounding):
    def nearly_equal(candidate, epochs):
        return [10.0 * (1 + rounding * epochs)] * epochs

    messages, _ = run_two_segments(nearly_equal, tmp_path)
    assert not messages


class OneSegmentMore(TwoSegments):
    """Trains two candidates to the second epoch, then the first one to the third."""

    proposals = TwoSegments.proposals[:3]


class LimitedMemory:
    """An executor with one slot and memory for trials up to a number, if they share the GPU and if they do not."""

    slots = 1

    def __init__(self, shared, whole):
        self.shared = shared
        self.whole = whole
        self.attempts = []

    def submit(self, attempt):
        self.attempts.append(attempt)

    def wait(self, timeout):
        attempt = self.attempts[-1]
        memory = self.whole if attempt.alone else self.shared
        if attempt.trial > memory:
            return [Outcome(attempt.number, None, "out of GPU memory", 1.0, out_of_memory=True)]
        return [Outcome(attempt.number, (1.0,) * attempt.epochs, None, 1.0)]


def test_a_trial_that_runs_out_of_memory_is_tried_once_more_alone_on_a_gpu(tmp_path):
    executor = LimitedMemory(shared=-1, whole=0)
    messages = []
    settings = SearchSettings(epochs=3, retries=5)
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        runner = TrialRunner(
            settings, SPACE, OneSegmentMore(), store, 6, lambda progress: messages.append(progress.message)
        )
        runner.run(executor)
    attempts = [(attempt.trial, attempt.alone) for attempt in executor.attempts]
    assert attempts == [(0, False), (0, True), (1, False), (1, True), (0, True)]
    assert [message for message in messages if message] == [
        "trial 0 failed, retrying alone: out of GPU memory",
        "trial 1 failed, retrying alone: out of GPU memory",
        "trial 1 failed alone: out of GPU memory",
    ]
    assert [trial.status for trial in runner.trials] == [COMPLETED, FAILED]
