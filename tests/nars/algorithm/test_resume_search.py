"""Searches resume after kills, signals and failures, and refuse the folder of a different search."""

import importlib
import linecache
import multiprocessing
import shutil
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
from fbnetv3.nars.algorithm.trial_runner import SearchError
from fbnetv3.nars.report.html_report import write_report
from fbnetv3.nars.report.saved_search import load
from fbnetv3.nars.report.search_analysis import save_analysis
from fbnetv3.nars.report.search_status import describe_search
from fbnetv3.nars.space.search_space import space_from_dict
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, TrialStoreError
from fbnetv3.utils.files import write_text
from tests.nars.toy import FAST, PAPER_QUICK, QUICK, ROOT, SPACE, evaluate, outcome

# Enough evaluations that some trials are paused and continued
SETTINGS = {**QUICK, "window": 4, "evaluations": 24}


class Continues:
    """Continues trials from their folder, and writes down what it trains."""

    continues = True

    def __init__(self, log):
        self.log = log

    def __call__(self, candidate, epochs):
        file = candidate.folder / "epochs"
        reached = int(file.read_text()) if file.exists() else 0
        with open(self.log, "a") as log:  # noqa: PTH123 (in a worker)
            log.write(f"{candidate.number} {reached} {epochs}\n")
        time.sleep(0.005 * (1 + candidate.number % 4) * (epochs - reached))
        write_text(file, str(epochs))
        return evaluate(candidate, epochs)


def run_search(folder, resume):
    search(SPACE, Continues(str(folder / "log")), folder / "out", **SETTINGS, resume=resume)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_search(folder, resume=False)
    return folder


def test_a_search_killed_again_and_again_ends_like_an_uninterrupted_one(uninterrupted, tmp_path):
    """Killed at random moments, from the first trial to the recommendations; no finished segment is rerun."""
    rng = np.random.default_rng(0)
    context = multiprocessing.get_context("fork")
    # Three kills at least, however fast the machine is
    metadata = load(uninterrupted / "out").metadata
    duration = metadata["finished"] - metadata["started"]
    kills = 0
    for seconds in (*rng.uniform(0.05, 0.3, 6) * duration, None):
        process = context.Process(target=run_search, args=(tmp_path, True))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert process.exitcode == 0 and kills >= 3
    assert outcome(tmp_path / "out") == outcome(uninterrupted / "out")
    trials, _ = outcome(tmp_path / "out")
    num_segments = sum(len(trial["segments"]) for trial in trials)
    assert num_segments > len(trials), "some trials were continued"
    runs = (tmp_path / "log").read_text().splitlines()
    assert len(runs) <= num_segments + 2 * kills, "only what was running when it was killed"
    spent = sum(trial["segments"][-1][1] for trial in trials)
    assert spent <= SETTINGS["evaluations"] * SETTINGS["epochs"]


def test_three_workers_that_end_in_any_order_do_not_change_the_result(uninterrupted, tmp_path):
    search(
        SPACE,
        Continues(str(tmp_path / "log")),
        tmp_path / "out",
        **{**SETTINGS, "executor": "local", "workers": 3},
    )
    assert outcome(tmp_path / "out") == outcome(uninterrupted / "out")


def test_a_search_that_the_callback_ends_has_a_result_and_can_be_resumed(plain_search, tmp_path):
    def until_ten(progress):
        return sum(trial.status == COMPLETED for trial in progress.trials) < 10

    partial = search(SPACE, evaluate, tmp_path / "out", **QUICK, on_progress=until_ten)
    assert 10 <= len(partial.trials) <= 11
    assert partial.recommendations[0].trial.number == partial.best.number
    search(SPACE, evaluate, tmp_path / "out", **QUICK, resume=True)
    assert outcome(tmp_path / "out") == outcome(plain_search.folder)


def test_a_search_ends_after_max_seconds_with_a_result_and_can_be_resumed(plain_search, tmp_path):
    messages = []

    def slow(candidate, epochs):
        time.sleep(0.1)
        return evaluate(candidate, epochs)

    settings = {**QUICK, "evaluations": 200}
    partial = search(
        SPACE,
        slow,
        tmp_path / "out",
        **settings,
        max_seconds=1.5,
        on_progress=lambda progress: messages.append(progress.message),
    )
    assert 2 <= len(partial.trials) < 20
    assert "max_seconds: 1.5 s have passed; running trials are interrupted" in messages
    assert partial.recommendations[0].measured is not None


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
    failed, retried = result.trials[4], result.trials[7]
    assert (failed.status, failed.segments[-1].attempts) == (FAILED, 2)
    assert failed.error.startswith("RuntimeError: unlucky")
    assert (retried.status, retried.segments[0].attempts) == (COMPLETED, 2)
    assert len({trial.candidate.tobytes() for trial in result.trials}) == len(result.trials)


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
        "failed trials: 3, more than max_failures (2); trial 0: expected one accuracy for each of"
    )
    assert "trial 1: the accuracy after epoch 1 is nan" in text
    assert "resume: failed trials are retried, finished ones are kept" in text
    with pytest.raises(TrialStoreError, match="a different evaluator"):
        search(SPACE, evaluate, tmp_path / "out", **settings, resume=True)
    (tmp_path / "out" / "fixed").touch()
    result = search(SPACE, fails_until_fixed, tmp_path / "out", **settings, resume=True)
    assert {t.status for t in result.trials} == {COMPLETED}


def returns_nothing_late(candidate, epochs):
    return evaluate(candidate, epochs if candidate.number < 12 else 0)


def test_a_resumed_search_is_not_finished(tmp_path):
    settings = {**QUICK, "evaluations": 12}
    save_analysis(search(SPACE, returns_nothing_late, tmp_path / "out", **settings))
    more = {**settings, "evaluations": 20, "max_failures": 0}
    with pytest.raises(SearchError, match="failed trials: 1, more than max_failures"):
        search(SPACE, returns_nothing_late, tmp_path / "out", **more, resume=True)
    assert "stopped by failures" in describe_search(tmp_path / "out")
    assert "The search has not finished" in write_report(tmp_path / "out").read_text()


def test_a_failed_start_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="pretraining_labels: unknown choice 'papper'"):
        search(SPACE, evaluate, tmp_path / "out", **PAPER_QUICK, pretraining_labels="papper")
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 9})


def test_a_folder_with_a_search_is_not_overwritten(plain_search):
    with pytest.raises(
        UsageError, match="already contains a search; resume it .*, or choose a different folder"
    ):
        search(SPACE, evaluate, plain_search.folder, **QUICK)


def test_trials_of_another_search_are_refused(tmp_path):
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 9})
    with pytest.raises(TrialStoreError, match=r"a different epochs \(6, now 9\)"):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "epochs": 9}, resume=True)
    with pytest.raises(TrialStoreError, match=r"a different window \(1, now 2\)"):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "window": 2}, resume=True)
    other = space_from_dict({"name": "toy", "variables": {"x0": {"range": [0, 7]}}})
    with pytest.raises(TrialStoreError, match=r"a different space .*toy"):
        search(other, evaluate, tmp_path / "out", **QUICK, resume=True)


def test_an_evaluator_whose_source_has_changed_is_refused_unless_accepted(tmp_path, monkeypatch):
    module = tmp_path / "changing_evaluator.py"
    monkeypatch.syspath_prepend(tmp_path)
    settings = {**QUICK, "evaluations": 9}

    def load(offset):
        module.write_text(
            f"def measure(candidate, epochs):\n    return [candidate['x0'] + {offset:g}] * epochs\n"
        )
        sys.modules.pop("changing_evaluator", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return importlib.import_module("changing_evaluator").measure

    search(SPACE, load(0), tmp_path / "out", **settings)
    search(SPACE, load(0), tmp_path / "out", **settings, resume=True)
    with pytest.raises(
        TrialStoreError, match="source code of the evaluator has changed .*accept_changes=True"
    ):
        search(SPACE, load(1), tmp_path / "out", **settings, resume=True)
    more = {**settings, "evaluations": 10}
    result = search(SPACE, load(1), tmp_path / "out", **more, resume=True, accept_changes=True)
    assert len(result.trials) == 10
    search(SPACE, load(1), tmp_path / "out", **more, resume=True)  # accepted from now on


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
    search(
        SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 9}
    )  # the lock ends with its process


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        search(SPACE, evaluate, tmp_path / "file" / "inside", **QUICK)
