"""The state of a search in a folder as text."""

import contextlib

import numpy as np

from fbnetv3.nars.report.saved_search import load
from fbnetv3.nars.report.search_status import describe_search, estimate_seconds_left
from fbnetv3.nars.trials.trial_store import EPOCHS_PLANNED, Proposal, TrialStore


def write_search(folder, num_failed=0):
    """Three initial trials of two epochs, of which one is left to do, and others that have failed."""
    with contextlib.closing(TrialStore(folder, create=True)) as store:
        proposals = [Proposal(2, np.zeros(2, int), phase="initial") for _ in range(3 + num_failed)]
        store.add(proposals, lambda candidate: {"lr": 0.1})
        store.complete(0, [60.0, 70.0], seconds=8.0)
        store.complete(1, [65.0, 75.0], seconds=12.0)
        for number in range(3, 3 + num_failed):
            store.fail(number, "unlucky", 1.0, retry=False)
        store.update_metadata({EPOCHS_PLANNED: 10, "configuration": {"epochs": 2, "workers": 2}})


def test_phases_the_best_trial_and_the_time_left(tmp_path):
    write_search(tmp_path)
    lines = describe_search(tmp_path).splitlines()
    assert lines[1] == "4 of 10 epochs, 0:15 left"  # six epochs of 5 s, on two workers
    (row,) = [line.split() for line in lines if line.startswith("initial")]
    assert row == ["initial", "3", "2", "0", "0", "1", "4", "75", "(trial", "1)", "0.01"]
    assert lines[-2:] == ["best: trial 1, 75", "  lr 0.1"]


def test_failures_that_are_not_shown_are_counted(tmp_path):
    write_search(tmp_path, num_failed=12)
    *_, tenth, rest = describe_search(tmp_path).splitlines()
    assert tenth == "trial 12 failed: unlucky"
    assert rest == "... and 2 more failed trials"


def test_before_the_first_trial_ends_the_time_left_is_unknown(tmp_path):
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        store.add([Proposal(2, np.zeros(2, int))], lambda candidate: {})
    assert estimate_seconds_left(load(tmp_path)) is None
    assert "left" not in describe_search(tmp_path)
