"""Searches resume after kills, signals and failures, and refuse the folder of a different search."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from fbnetv3.errors import OutputError, UsageError, UserError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.rounds import SearchError
from fbnetv3.nars.algorithm.trial_store import DONE, FAILED, TrialStoreError
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.progress_table import describe_search
from fbnetv3.nars.report.search_analysis import save_analysis
from fbnetv3.nars.space.search_space import space_from_dict
from tests.nars.toy import FAST, QUICK, ROOT, SPACE, evaluate, outcome

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from fbnetv3.nars.algorithm.nars_search import search
from tests.nars.toy import QUICK, SPACE, evaluate

folder = sys.argv[1]

def counted(candidate, epochs):
    with open(folder + "/calls", "a") as f:
        f.write(f"{candidate.number}\\n")
    time.sleep(0.03)
    return evaluate(candidate, epochs)

search(SPACE, counted, folder + "/out", **{**QUICK, "executor": "local"}, workers=2, resume="--resume" in sys.argv)
print("finished")
"""


def test_a_search_killed_again_and_again_ends_like_an_uninterrupted_one(plain_search, tmp_path):
    """Killed at random moments; no finished trial is rerun."""
    rng = np.random.default_rng(0)
    kills = 0
    resume = []
    while True:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), *resume]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        resume = ["--resume"]
        try:
            # From the middle of the imports to the last round; after five kills it runs to the end
            assert process.wait(rng.uniform(1.0, 8.0) if kills < 5 else None) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.stdout.read() == "finished\n"
        break
    assert outcome(tmp_path / "out") == outcome(plain_search.folder)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) <= 30 + 2 * kills  # only what was running when it was killed
    assert {int(call) for call in calls} == set(range(30))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_search_says_how_to_resume(tmp_path, number, code, word):
    config = tmp_path / "search.yaml"
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef evaluate(candidate, epochs):\n    time.sleep(60)\n    return [1.0] * epochs\n"
    )
    config.write_text(
        yaml.safe_dump(
            {
                "space": {"name": "s", "variables": {"a": {"range": [0, 99]}}},
                "evaluator": "slow:evaluate",
                "epochs": 1,
                "output": "out",
                "predictor": FAST,
            }
        )
    )
    tool = [sys.executable, str(ROOT / "tools" / "search_net.py"), "--config", str(config)]
    process = subprocess.Popen(
        tool, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(log.read_text() for log in tmp_path.glob("out/logs/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"{word}; add --resume to continue; finished trials are kept\n"


def fails_sometimes(candidate, epochs):
    if candidate.number == 4 or (candidate.number == 7 and candidate.attempt == 0):
        raise RuntimeError("unlucky")
    return evaluate(candidate, epochs)


def test_failed_trials_are_tried_again_then_recorded(tmp_path):
    result = search(SPACE, fails_sometimes, tmp_path / "out", **QUICK)
    by_number = {t.number: t for t in result.trials}
    assert (by_number[4].status, by_number[4].attempts) == (FAILED, 2)
    assert by_number[4].error.startswith("RuntimeError: unlucky")
    assert (by_number[7].status, by_number[7].attempts) == (DONE, 2)
    assert len(result.trials) == 30


def fails_until_fixed(candidate, epochs):
    if Path(f"{candidate.folder}/../../fixed").exists():
        return evaluate(candidate, epochs)
    return [float("nan")] * epochs if candidate.number % 2 else [0.5]


def test_too_many_failures_stop_a_search_until_fixed(tmp_path):
    settings = {**QUICK, "max_failures": 2, "retries": 0}
    with pytest.raises(SearchError) as caught:
        search(SPACE, fails_until_fixed, tmp_path / "out", **settings)
    text = str(caught.value)
    assert text.startswith(
        "failed trials: 3, more than max_failures (2); trial 0: the evaluator returned 1 accuracies"
    )
    assert "trial 1: the accuracy after epoch 1 is nan" in text
    assert "resume: failed trials of the last round are retried" in text
    with pytest.raises(TrialStoreError, match="a different evaluator"):
        search(SPACE, evaluate, tmp_path / "out", **settings, resume=True)
    (tmp_path / "out" / "fixed").touch()
    result = search(SPACE, fails_until_fixed, tmp_path / "out", **settings, resume=True)
    assert {t.status for t in result.trials} == {DONE}


def fails_late(candidate, epochs):
    if Path(f"{candidate.folder}/../../fixed").exists():
        return evaluate(candidate, epochs)
    if candidate.number in (2, 5) or candidate.number >= 10:
        raise RuntimeError("not fixed")
    return evaluate(candidate, epochs)


def test_early_failures_stay_when_later_ones_are_fixed(tmp_path):
    """Later rounds and the stopping epoch were chosen without them."""
    settings = {**QUICK, "max_failures": 3, "retries": 0}
    with pytest.raises(SearchError, match="failed trials: 4, more than max_failures"):
        search(SPACE, fails_late, tmp_path / "out", **settings)
    (tmp_path / "out" / "fixed").touch()
    result = search(SPACE, fails_late, tmp_path / "out", **settings, resume=True)
    assert [t.number for t in result.trials if t.status == FAILED] == [2, 5]
    assert {t.epochs for t in result.trials if t.round} == {result.stopping_epoch}


def test_a_resumed_search_is_not_finished(tmp_path):
    settings = {**QUICK, "rounds": 1}
    result = search(SPACE, returns_nothing_late, tmp_path / "out", **settings)
    assert result.stopping_epoch == 6  # nothing stopped early, so full evaluations are compared
    save_analysis(result)
    with pytest.raises(SearchError):
        search(
            SPACE,
            returns_nothing_late,
            tmp_path / "out",
            **{**settings, "rounds": 2, "max_failures": 0},
            resume=True,
        )
    assert "stopped by failures" in describe_search(tmp_path / "out")
    assert "The search has not finished" in write_report(tmp_path / "out").read_text()
    fewer = search(
        SPACE, returns_nothing_late, tmp_path / "again", **{**QUICK, "max_failures": 30, "rounds": 2}
    )
    assert (
        len(
            search(
                SPACE, returns_nothing_late, fewer.folder, **settings, max_failures=30, resume=True
            ).trials
        )
        == 20
    )


def returns_nothing_late(candidate, epochs):
    return evaluate(candidate, epochs if candidate.number < 12 else 0)


def test_a_failed_start_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="pretraining_labels: unknown choice 'papper'"):
        search(SPACE, evaluate, tmp_path / "out", **QUICK, pretraining_labels="papper")
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})


def test_a_folder_with_a_search_is_not_overwritten(plain_search):
    with pytest.raises(
        UsageError, match="already contains a search; resume it .*, or choose a different folder"
    ):
        search(SPACE, evaluate, plain_search.folder, **QUICK)


def test_trials_of_another_search_are_refused(tmp_path):
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})
    with pytest.raises(TrialStoreError, match=r"a different epochs \(6, now 9\)"):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "epochs": 9}, resume=True)
    other = space_from_dict({"name": "toy", "variables": {"x0": {"range": [0, 7]}}})
    with pytest.raises(TrialStoreError, match=r"a different space .*toy"):
        search(other, evaluate, tmp_path / "out", **QUICK, resume=True)


def test_two_searches_in_one_folder(tmp_path):
    script = (
        "import sys; from pathlib import Path; from fbnetv3.utils.files import FolderLock\n"
        "with FolderLock(Path(sys.argv[1]), 'search', 'choose another folder'):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=rf"another search is using it \(process {other.pid}\)"):
            search(SPACE, evaluate, tmp_path / "out", **QUICK)
    finally:
        other.kill()
        other.wait()
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})  # the lock ends with its process


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        search(SPACE, evaluate, tmp_path / "file" / "inside", **QUICK)
