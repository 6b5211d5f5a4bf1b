"""A search that is killed again and again finds what one finds that is not; no trial that had ended is run again."""

import contextlib
import sqlite3

import pytest

from fbnetv3.nars.algorithm.trial_store import DONE, FILE, TrialStore
from tests.hardening import victims
from tests.hardening.conftest import THOROUGH
from tests.hardening.killing import ended, kill
from tests.nars.toy import outcome

KILLS = 3 * THOROUGH
TRIALS = 30


def started(nursery, folder, resume=True, executor="serial"):
    process = nursery.Process(target=victims.run_search, args=(folder, resume, executor))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed_search")
    assert ended(started(nursery, folder, False)) == 0
    return outcome(folder / "out")


def done_in(folder):
    """Trials that have ended, by what SQLite itself says of the file."""
    if not (folder / "out" / FILE).exists():
        return set()
    with contextlib.closing(sqlite3.connect(folder / "out" / FILE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return set()
    with contextlib.closing(TrialStore(folder / "out")) as store:
        return {trial.number for trial in store.all() if trial.status == DONE}


def test_it_ends_as_the_undisturbed_one(nursery, undisturbed, tmp_path, chance):
    kills = torn = lives = 0
    while kills < KILLS:
        folder = tmp_path / f"life{lives}"
        folder.mkdir()
        here, done = 0, set()
        while True:
            process = started(nursery, folder)
            if kills >= KILLS:
                assert ended(process) == 0
                break
            if not kill(process, folder, f"{FILE}-journal", chance, 2.5):
                assert process.exitcode == 0
                break
            kills, here = kills + 1, here + 1
            torn += (folder / "out" / f"{FILE}-journal").exists()
            assert done <= (done := done_in(folder))
        assert outcome(folder / "out") == undisturbed
        calls = (folder / "calls").read_text().split()
        assert set(map(int, calls)) == set(range(TRIALS))
        assert len(calls) <= TRIALS + here  # only what was running when it was killed
        lives += 1
    print(f"searches: {kills} kills, {torn} of them in a write, {lives} runs")


def test_two_at_once_in_one_folder(nursery, undisturbed, tmp_path):
    for number in range(THOROUGH):
        folder = tmp_path / f"pair{number}"
        folder.mkdir()
        pair = [started(nursery, folder) for _ in range(2)]
        assert sorted(ended(process) for process in pair) == [0, victims.REFUSED]
        assert outcome(folder / "out") == undisturbed
