"""A search goes on after whatever has ended it: kills, signals, failures; and keeps to its own folder."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from fbnetv3.errors import UsageError, UserError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.rounds import SearchError
from fbnetv3.nars.algorithm.trial_store import DONE, FAILED, TrialsError
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.progress_table import describe
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


def test_killed_anywhere_it_ends_as_the_unkilled_search_does(plain, tmp_path):
    """Killed again and again at random moments; no trial that had ended is run again."""
    chance, kills, resume = np.random.default_rng(0), 0, []
    while True:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), *resume]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        resume = ["--resume"]
        try:
            # from the middle of the imports to the last round; in the end it is left alone
            assert process.wait(chance.uniform(1.0, 8.0) if kills < 5 else None) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.stdout.read() == "finished\n"
        break
    assert outcome(tmp_path / "out") == outcome(plain.folder)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) <= 30 + 2 * kills  # only what was running when it was killed
    assert {int(call) for call in calls} == set(range(30))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted_it_says_what_to_do(tmp_path, number, code, word):
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
    process = subprocess.Popen(tool, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(log.read_text() for log in tmp_path.glob("out/logs/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"{word}; add --resume to go on; nothing that has ended is lost\n"


def sometimes(candidate, epochs):
    if candidate.number == 4 or (candidate.number == 7 and candidate.attempt == 0):
        raise RuntimeError("unlucky")
    return evaluate(candidate, epochs)


def test_failed_trials_are_tried_again_then_recorded(tmp_path):
    result = search(SPACE, sometimes, tmp_path / "out", **QUICK)
    by_number = {t.number: t for t in result.trials}
    assert (by_number[4].status, by_number[4].attempts) == (FAILED, 2)
    assert by_number[4].error.startswith("RuntimeError: unlucky")
    assert (by_number[7].status, by_number[7].attempts) == (DONE, 2)
    assert len(result.trials) == 30


def never(candidate, epochs):
    if Path(f"{candidate.folder}/../../mended").exists():
        return evaluate(candidate, epochs)
    return [float("nan")] * epochs if candidate.number % 2 else [0.5]


def test_too_many_failures_stop_it_and_can_be_mended(tmp_path):
    settings = {**QUICK, "max_failures": 2, "retries": 0}
    with pytest.raises(SearchError) as caught:
        search(SPACE, never, tmp_path / "out", **settings)
    text = str(caught.value)
    assert text.startswith("3 trials have failed, more than max_failures 2; trial 0: the evaluator gave 1 accuracies")
    assert "trial 1: the accuracy after epoch 1 is nan" in text
    assert "resume" in text
    with pytest.raises(TrialsError, match="another evaluator"):
        search(SPACE, evaluate, tmp_path / "out", **settings, resume=True)
    (tmp_path / "out" / "mended").touch()
    result = search(SPACE, never, tmp_path / "out", **settings, resume=True)
    assert {t.status for t in result.trials} == {DONE}


def fails_late(candidate, epochs):
    if Path(f"{candidate.folder}/../../mended").exists():
        return evaluate(candidate, epochs)
    if candidate.number in (2, 5) or candidate.number >= 10:
        raise RuntimeError("not mended")
    return evaluate(candidate, epochs)


def test_what_failed_early_stays_failed_when_later_failures_are_mended(tmp_path):
    """Later rounds were chosen without it, and by an epoch that was chosen without it."""
    settings = {**QUICK, "max_failures": 3, "retries": 0}
    with pytest.raises(SearchError, match="4 trials have failed"):
        search(SPACE, fails_late, tmp_path / "out", **settings)
    (tmp_path / "out" / "mended").touch()
    result = search(SPACE, fails_late, tmp_path / "out", **settings, resume=True)
    assert [t.number for t in result.trials if t.status == FAILED] == [2, 5]
    assert {t.epochs for t in result.trials if t.round} == {result.stop_epoch}


def test_a_search_that_goes_on_is_not_called_finished(tmp_path):
    settings = {**QUICK, "rounds": 1}
    result = search(SPACE, sometimes_dead, tmp_path / "out", **settings)
    assert result.stop_epoch == 6  # nothing ended early, and whole trainings are there to compare
    save_analysis(result)
    with pytest.raises(SearchError):
        search(SPACE, sometimes_dead, tmp_path / "out", **{**settings, "rounds": 2, "max_failures": 0}, resume=True)
    assert "stopped by failures" in describe(tmp_path / "out")
    assert "The search has not come to its end" in write_report(tmp_path / "out").read_text()
    fewer = search(SPACE, sometimes_dead, tmp_path / "again", **{**QUICK, "max_failures": 30, "rounds": 2})
    assert len(search(SPACE, sometimes_dead, fewer.folder, **settings, max_failures=30, resume=True).trials) == 20


def sometimes_dead(candidate, epochs):
    return evaluate(candidate, epochs if candidate.number < 12 else 0)


def test_a_start_that_failed_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="labels: 'papper' is no choice"):
        search(SPACE, evaluate, tmp_path / "out", **QUICK, labels="papper")
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})


def test_a_folder_with_a_search_is_not_overwritten(whole):
    with pytest.raises(UsageError, match="holds a search already; resume it, or choose another folder"):
        search(SPACE, evaluate, whole.folder, **QUICK)


def test_trials_of_another_search_are_not_mixed_in(tmp_path):
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})
    with pytest.raises(TrialsError, match="another epochs: 6, not 9"):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "epochs": 9}, resume=True)
    other = space_from_dict({"name": "toy", "variables": {"x0": {"range": [0, 7]}}})
    with pytest.raises(TrialsError, match=r"another space: .*toy"):
        search(other, evaluate, tmp_path / "out", **QUICK, resume=True)
