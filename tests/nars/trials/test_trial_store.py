"""Trials in SQLite: they survive crashes, and files of other programs or versions are refused."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from fbnetv3.errors import OutputError
from fbnetv3.nars.trials.trial_store import (
    COMPLETED,
    FAILED,
    INITIAL,
    RUNNING,
    TRIALS_FILE,
    WAITING,
    Proposal,
    TrialStore,
    TrialStoreError,
)

CANDIDATES = np.array([[0, 1], [1, 0], [2, 2]])


def decode(candidate):
    return {"a": int(candidate[0]), "b": int(candidate[1])}


def add(store, candidates, **fields):
    return store.add([Proposal(4, candidate, phase=INITIAL, **fields) for candidate in candidates], decode)


@pytest.fixture
def store(tmp_path):
    store = TrialStore(tmp_path, create=True)
    add(store, CANDIDATES)
    yield store
    store.close()


def test_a_trial_from_proposal_to_end(store):
    assert [trial.status for trial in store.trials()] == [WAITING] * 3
    store.start(0)
    assert store.trial(0).status == RUNNING
    store.complete(0, [1, 2, 3, 4], 1.5)
    trial = store.trial(0)
    assert (trial.status, trial.curve, trial.seconds) == (COMPLETED, (1, 2, 3, 4), 1.5)
    assert (trial.phase, trial.epochs, trial.value(4), trial.values) == (INITIAL, 4, 4, {"a": 0, "b": 1})
    np.testing.assert_array_equal(trial.candidate, CANDIDATES[0])
    store.start(1)
    store.fail(1, "boom", 0.1, retry=True)
    assert (store.trial(1).status, store.trial(1).error) == (WAITING, "boom")
    store.fail(1, "boom again", 0.1, retry=False)
    assert (store.trial(1).status, store.trial(1).segments[0].attempts) == (FAILED, 2)


def test_a_continued_trial_has_one_curve_and_several_segments(store):
    store.complete(0, [1, 2], 1.5)
    (segment,) = store.add([Proposal(6, trial=0, state={"length": [0.5]})], decode)
    assert (segment.number, segment.trial, segment.epochs, segment.status) == (3, 0, 6, WAITING)
    assert store.trial(0).curve == (1, 2) and store.trial(0).status == WAITING
    store.start(3)
    store.complete(3, [1, 2, 3, 4, 5, 6], 2.0)
    trial = store.trial(0)
    assert (trial.curve, trial.epochs, trial.seconds) == ((1, 2, 3, 4, 5, 6), 6, 3.5)
    assert [part.number for part in trial.segments] == [0, 3]
    assert [part.has_ended for part in trial.segments] == [True, True]
    assert trial.segments[1].state == {"length": [0.5]}
    assert len(store.trials()) == 3 and len(store.segments()) == 4


def test_numbers_continue_and_predictions_are_kept(store):
    segments = add(store, CANDIDATES[:2] + 3, round=1, predicted=0.5, predicted_std=0.25, budget="best")
    assert [(segment.number, segment.trial) for segment in segments] == [(3, 3), (4, 4)]
    trial = store.trials()[4]
    assert (trial.round, trial.predicted, trial.predicted_std, trial.budget) == (1, 0.5, 0.25, "best")
    assert store.trials()[0].predicted is None


def test_interrupted_trials_are_requeued(store):
    store.start(0)
    store.fail(1, "boom", 0, retry=False)
    store.requeue()
    assert [t.status for t in store.trials()] == [WAITING, FAILED, WAITING]
    store.requeue(include_failed=True)
    assert [(part.status, part.attempts) for part in store.segments()] == [(WAITING, 0)] * 3


def test_trials_survive_sigkill(tmp_path):
    script = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from fbnetv3.nars.trials.trial_store import Proposal, TrialStore\n"
        "store = TrialStore(Path(sys.argv[1]), create=True)\n"
        "store.add([Proposal(1, np.zeros(3, int))] * 2, lambda candidate: {})\n"
        "store.start(0); store.complete(0, [0.5], 1.0); store.start(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    store = TrialStore(tmp_path)
    assert [t.status for t in store.trials()] == [COMPLETED, RUNNING]
    store.close()


def test_metadata(store):
    store.update_metadata({"a": 1, "b": {"c": [2]}})
    store.update_metadata({"a": 3})
    assert store.metadata() == {"a": 3, "b": {"c": [2]}}


def test_a_folder_without_a_search(tmp_path):
    with pytest.raises(TrialStoreError, match=rf"{tmp_path}: contains no search"):
        TrialStore(tmp_path)


def test_a_file_that_is_not_a_database(tmp_path):
    (tmp_path / TRIALS_FILE).write_text("this is not a database, however long it is" * 100)
    with pytest.raises(TrialStoreError, match="is corrupt, or not a file of search trials"):
        TrialStore(tmp_path)


def test_another_programs_database(tmp_path):
    connection = sqlite3.connect(tmp_path / TRIALS_FILE)
    connection.execute("CREATE TABLE things (a)")
    connection.close()
    with pytest.raises(TrialStoreError, match="is not a file of search trials"):
        TrialStore(tmp_path, create=True)


def test_another_versions_database(store, tmp_path):
    connection = sqlite3.connect(tmp_path / TRIALS_FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TrialStoreError, match="has schema version 99, but this fbnetv3 reads version 3"):
        TrialStore(tmp_path)


def test_a_file_that_is_refused_is_closed(store, tmp_path, monkeypatch):
    store._connection.execute("PRAGMA user_version = 99")
    connections = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: connections.append(connect(*a, **k)) or connections[-1]
    )
    with pytest.raises(TrialStoreError, match="has schema version 99"):
        TrialStore(tmp_path)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connections[0].execute("SELECT 1")


def test_a_full_disk_loses_no_finished_trial(store, tmp_path):
    store.complete(0, [1.0] * 4, 1.0)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite calls a full disk
    with pytest.raises(OutputError, match="full: free some disk space, then resume"):
        add(store, np.zeros((5000, 2), int))
    assert [t.status for t in store.trials()] == [COMPLETED, WAITING, WAITING]
    again = TrialStore(tmp_path)
    assert len(again.trials()) == 3
    again.close()
