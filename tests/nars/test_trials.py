"""Trials in SQLite: kept whatever happens, refused where they are another search's."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.nars.algorithm.trial_store import (
    DONE,
    FAILED,
    FILE,
    RUNNING,
    WAITING,
    TrialsError,
    TrialStore,
    locked,
)

CANDIDATES = np.array([[0, 1], [1, 0], [2, 2]])


@pytest.fixture
def store(tmp_path):
    store = TrialStore(tmp_path, create=True)
    store.add_round(0, CANDIDATES, epochs=4)
    yield store
    store.close()


def test_a_trial_from_proposal_to_end(store):
    assert [t.status for t in store.all()] == [WAITING] * 3
    assert store.rounds() == 1
    store.start(0)
    store.finish(0, [1, 2, 3, 4], 1.5)
    trial = store.all()[0]
    assert (trial.status, trial.attempts, trial.curve, trial.seconds) == (DONE, 1, (1, 2, 3, 4), 1.5)
    assert trial.accuracy(4) == 4
    np.testing.assert_array_equal(trial.candidate, CANDIDATES[0])
    store.start(1)
    store.fail(1, "boom", 0.1, again=True)
    assert (store.all()[1].status, store.all()[1].error) == (WAITING, "boom")
    store.fail(1, "boom again", 0.1, again=False)
    assert (store.all()[1].status, store.all()[1].attempts) == (FAILED, 2)


def test_rounds_go_on_counting(store):
    store.add_round(1, CANDIDATES[:2], epochs=2, predicted=[0.5, 0.25])
    assert [(t.number, t.round, t.predicted) for t in store.all(1)] == [(3, 1, 0.5), (4, 1, 0.25)]
    assert store.all(0)[0].predicted is None


def test_what_was_running_runs_again_and_failures_only_if_asked(store):
    store.start(0)
    store.fail(1, "boom", 0, again=False)
    store.release()
    assert [t.status for t in store.all()] == [WAITING, FAILED, WAITING]
    store.release(failed=True)
    assert [(t.status, t.attempts) for t in store.all()] == [(WAITING, 0)] * 3


def test_it_outlives_a_process_that_is_killed(tmp_path):
    script = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from fbnetv3.nars.algorithm.trial_store import TrialStore\n"
        "store = TrialStore(Path(sys.argv[1]), create=True)\n"
        "store.add_round(0, np.zeros((2, 3), int), 1); store.start(0); store.finish(0, [0.5], 1.0); store.start(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    store = TrialStore(tmp_path)
    assert [t.status for t in store.all()] == [DONE, RUNNING]
    store.close()


def test_facts_about_the_search(store):
    store.set_about({"a": 1, "b": {"c": [2]}})
    store.set_about({"a": 3})
    assert store.about() == {"a": 3, "b": {"c": [2]}}


def test_a_folder_without_a_search(tmp_path):
    with pytest.raises(TrialsError, match=rf"{tmp_path}: holds no search"):
        TrialStore(tmp_path)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / FILE).write_text("this is not a database, however long it may be" * 100)
    with pytest.raises(TrialsError, match="is damaged, or no file of a search's trials"):
        TrialStore(tmp_path)


def test_another_programs_database(tmp_path):
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE things (a)")
    connection.close()
    with pytest.raises(TrialsError, match="is no file of a search's trials"):
        TrialStore(tmp_path, create=True)


def test_another_versions_database(store, tmp_path):
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TrialsError, match="is of version 99, this program reads version 1"):
        TrialStore(tmp_path)


def test_a_full_disk_loses_nothing_that_was_there(store, tmp_path):
    store.finish(0, [1.0] * 4, 1.0)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite calls a full disk
    with pytest.raises(OutputError, match="full: free some space, then resume"):
        store.add_round(1, np.zeros((5000, 2), int), 4)
    assert [t.status for t in store.all()] == [DONE, WAITING, WAITING]
    again = TrialStore(tmp_path)
    assert len(again.all()) == 3
    again.close()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "file" / "inside"):
        pass


def test_two_searches_on_one_folder(tmp_path):
    script = (
        "import sys; from pathlib import Path; from fbnetv3.nars.algorithm.trial_store import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=rf"another search runs there \(process {other.pid}\)"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):  # the lock goes with the process
        pass
