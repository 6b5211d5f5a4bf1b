"""Trials in SQLite: they survive crashes, and files of other programs or versions are refused."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from fbnetv3.errors import OutputError
from fbnetv3.nars.algorithm.trial_store import (
    DONE,
    FAILED,
    RUNNING,
    TRIALS_FILE,
    WAITING,
    TrialStore,
    TrialStoreError,
)

CANDIDATES = np.array([[0, 1], [1, 0], [2, 2]])


@pytest.fixture
def store(tmp_path):
    store = TrialStore(tmp_path, create=True)
    store.add_round(0, CANDIDATES, epochs=4)
    yield store
    store.close()


def test_a_trial_from_proposal_to_end(store):
    assert [t.status for t in store.trials()] == [WAITING] * 3
    assert store.num_rounds() == 1
    store.start(0)
    store.finish(0, [1, 2, 3, 4], 1.5)
    trial = store.trials()[0]
    assert (trial.status, trial.attempts, trial.curve, trial.seconds) == (DONE, 1, (1, 2, 3, 4), 1.5)
    assert trial.accuracy(4) == 4
    np.testing.assert_array_equal(trial.candidate, CANDIDATES[0])
    store.start(1)
    store.fail(1, "boom", 0.1, retry=True)
    assert (store.trials()[1].status, store.trials()[1].error) == (WAITING, "boom")
    store.fail(1, "boom again", 0.1, retry=False)
    assert (store.trials()[1].status, store.trials()[1].attempts) == (FAILED, 2)


def test_later_rounds_continue_the_numbers(store):
    store.add_round(1, CANDIDATES[:2], epochs=2, predicted=[0.5, 0.25])
    trials = [(t.number, t.round, t.predicted) for t in store.trials()]
    assert trials == [(0, 0, None), (1, 0, None), (2, 0, None), (3, 1, 0.5), (4, 1, 0.25)]


def test_interrupted_trials_are_requeued(store):
    store.start(0)
    store.fail(1, "boom", 0, retry=False)
    store.requeue()
    assert [t.status for t in store.trials()] == [WAITING, FAILED, WAITING]
    store.requeue(include_failed=True)
    assert [(t.status, t.attempts) for t in store.trials()] == [(WAITING, 0)] * 3


def test_trials_survive_sigkill(tmp_path):
    script = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from fbnetv3.nars.algorithm.trial_store import TrialStore\n"
        "store = TrialStore(Path(sys.argv[1]), create=True)\n"
        "store.add_round(0, np.zeros((2, 3), int), 1); store.start(0); store.finish(0, [0.5], 1.0); store.start(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    store = TrialStore(tmp_path)
    assert [t.status for t in store.trials()] == [DONE, RUNNING]
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
    with pytest.raises(TrialStoreError, match="has schema version 99, but this fbnetv3 reads version 2"):
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
    store.finish(0, [1.0] * 4, 1.0)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite calls a full disk
    with pytest.raises(OutputError, match="full: free some disk space, then resume"):
        store.add_round(1, np.zeros((5000, 2), int), 4)
    assert [t.status for t in store.trials()] == [DONE, WAITING, WAITING]
    again = TrialStore(tmp_path)
    assert len(again.trials()) == 3
    again.close()
