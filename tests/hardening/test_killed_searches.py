"""A search that is killed repeatedly has the result of an uninterrupted one, and reruns no completed segment."""

import contextlib
import sqlite3

import pytest

from fbnetv3.nars.trials.trial_store import COMPLETED, TRIALS_FILE, TrialStore
from tests.hardening import process_targets
from tests.hardening.conftest import SCALE
from tests.hardening.killing import kill_randomly, wait_for_exit
from tests.nars.toy import outcome

KILLS = 3 * SCALE


def start_search(forkserver, folder, resume=True, target=process_targets.run_search):
    process = forkserver.Process(target=target, args=(folder, resume))
    process.start()
    return process


@pytest.fixture(scope="module", params=[process_targets.run_search, process_targets.ask_and_tell])
def target(request):
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(forkserver, tmp_path_factory, target):
    """Return the outcome of a search that was not killed; some of its trials were paused, and some continued."""
    folder = tmp_path_factory.mktemp("uninterrupted_search")
    assert wait_for_exit(start_search(forkserver, folder, False, target)) == 0
    trials, recommendations = outcome(folder / "out")
    assert any(len(trial["curve"]) < 6 for trial in trials)
    assert any(len(trial["segments"]) > 1 for trial in trials)
    return trials, recommendations


def completed_segments(folder):
    """Return the numbers of the completed segments, after an integrity check of the database by SQLite itself."""
    file = folder / "out" / TRIALS_FILE
    if not file.exists():
        return set()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return set()
    with contextlib.closing(TrialStore(folder / "out")) as store:
        return {segment.number for segment in store.segments() if segment.status == COMPLETED}


def test_a_killed_search_resumes_to_the_same_result(forkserver, target, uninterrupted, tmp_path, rng):
    kills = 0
    kills_during_write = 0
    searches = 0
    while kills < KILLS:
        folder = tmp_path / f"search{searches}"
        folder.mkdir()
        kills_before = kills
        completed = set()
        while True:
            process = start_search(forkserver, folder, target=target)
            if kills >= KILLS:
                assert wait_for_exit(process) == 0
                break
            if not kill_randomly(process, folder, f"{TRIALS_FILE}-journal", rng, 2.5):
                assert process.exitcode == 0
                break
            kills += 1
            kills_during_write += (folder / "out" / f"{TRIALS_FILE}-journal").exists()
            previously_completed = completed
            completed = completed_segments(folder)
            assert previously_completed <= completed
        assert outcome(folder / "out") == uninterrupted
        calls = (folder / "calls").read_text().split()
        trials, _ = uninterrupted
        num_segments = sum(len(trial["segments"]) for trial in trials)
        assert set(map(int, calls)) == set(range(len(trials)))
        # Only the segment running at a kill is repeated
        assert len(calls) <= num_segments + kills - kills_before
        searches += 1
    print(f"searches: {kills} kills, {kills_during_write} of them during a write, {searches} searches")


def test_two_searches_in_one_folder_exclude_each_other(forkserver, target, uninterrupted, tmp_path):
    if target is process_targets.ask_and_tell:
        pytest.skip("several processes may ask and tell in one folder")
    for number in range(SCALE):
        folder = tmp_path / f"pair{number}"
        folder.mkdir()
        processes = [start_search(forkserver, folder) for _ in range(2)]
        assert sorted(wait_for_exit(process) for process in processes) == [0, process_targets.USER_ERROR]
        assert outcome(folder / "out") == uninterrupted
