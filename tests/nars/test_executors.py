"""Evaluations in processes: what they give, how they fail, that nothing is left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.execution.executors import open_executor
from fbnetv3.nars.execution.jobs import Job
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict({"name": "one", "variables": {"a": {"range": [0, 99]}}})


def job(number, epochs=2, folder=None):
    return Job(number, np.array([number]), epochs, epochs, seed=7, folder=folder)


def run(executor, *jobs):
    """Outcomes by number, no more at a time than there are slots."""
    waiting, found, running = list(jobs), {}, 0
    while waiting or running:
        while waiting and running < executor.slots:
            executor.submit(waiting.pop(0))
            running += 1
        for outcome in executor.wait(1.0):
            found[outcome.number] = outcome
            running -= 1
    return found


def opened(evaluator, tmp_path, kind="local", workers=2, time_limit=None):
    return open_executor(kind, SPACE, evaluator, workers=workers, time_limit=time_limit, logs=tmp_path / "logs")


def good(candidate, epochs):
    print("hello from", candidate["a"])
    return [candidate["a"] + candidate.seed] * epochs


@pytest.mark.parametrize("kind", ["local", "serial"])
def test_every_job_has_its_outcome(kind, tmp_path):
    with opened(good, tmp_path, kind) as executor:
        found = run(executor, *map(job, range(5)))
    assert {number: outcome.curve for number, outcome in found.items()} == {n: (n + 7.0, n + 7.0) for n in range(5)}
    if kind == "local":
        logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
        assert all(f"hello from {number}" in logs for number in range(5))


def test_a_function_of_a_script_needs_no_guard(tmp_path):
    """No `if __name__ == "__main__"`, and closures will do."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from fbnetv3.nars.execution.executors import open_executor\n"
        "import sys; sys.path.append(sys.argv[1])\n"
        "from tests.nars.test_executors import SPACE, job, run\n"
        "offset = 10\n"
        "evaluate = lambda candidate, epochs: [candidate['a'] + offset] * epochs\n"
        "with open_executor('local', SPACE, evaluate, workers=1, time_limit=None, logs=Path('logs')) as executor:\n"
        "    print(run(executor, job(3))[3].curve)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, script, root], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "(13.0, 13.0)\n"


def silent(candidate, epochs):
    sys.stdout.close()
    os.close(1)
    return [1.0] * epochs


def test_an_evaluator_may_close_its_output(tmp_path):
    with opened(silent, tmp_path, workers=1) as executor:
        found = run(executor, job(0))
        assert found[0].curve == (1.0, 1.0)
    assert "--- trial 0" in (tmp_path / "logs" / "worker_0.txt").read_text()


def bad(candidate, epochs):
    if candidate["a"] == 0:
        raise ZeroDivisionError("what now")
    if candidate["a"] == 1:
        os._exit(3)
    if candidate["a"] == 2:
        os.kill(os.getpid(), 9)
    return [0.5] * (epochs - 1 if candidate["a"] == 3 else epochs)


def test_failures_are_told_apart(tmp_path):
    with opened(bad, tmp_path) as executor:
        found = run(executor, *map(job, range(5)))
    assert found[0].error.startswith("ZeroDivisionError: what now (in test_executors.py, line ")
    assert "the process that evaluated it ended (exit code 3)" in found[1].error
    assert "signal 9, SIGKILL; the memory may have run out" in found[2].error
    assert "gave 1 accuracies for 2 epochs" in found[3].error
    assert found[4].curve == (0.5, 0.5)


def leaves_a_child(candidate, epochs):
    """Dies, while a child of its own keeps its end of the pipe open; or ends itself."""
    if candidate["a"] == 0 and os.fork():
        os.kill(os.getpid(), 9)
    if candidate["a"] == 0:
        time.sleep(100)
    if candidate["a"] == 1:
        sys.exit("enough")
    return [1.0] * epochs


def test_what_ends_itself_is_noticed(tmp_path):
    with opened(leaves_a_child, tmp_path) as executor:
        found = run(executor, *map(job, range(3)))
    assert "signal 9, SIGKILL" in found[0].error
    assert found[1].error.startswith("SystemExit: enough")
    assert found[2].curve == (1.0, 1.0)


def import_path_of_a_child(candidate, epochs):
    Path(candidate.folder / "path").write_text(os.environ.get("PYTHONPATH", "none"))
    return [1.0] * epochs


@pytest.mark.parametrize("given", [None, "/somewhere"])
def test_processes_of_evaluators_see_the_users_import_path(tmp_path, monkeypatch, given):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given:
        monkeypatch.setenv("PYTHONPATH", given)
    with opened(import_path_of_a_child, tmp_path, workers=1) as executor:
        found = run(executor, job(0, folder=tmp_path))
    assert found[0].error is None and (tmp_path / "path").read_text() == (given or "none")


def hangs(candidate, epochs):
    if candidate["a"] == 0:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        Path(candidate.folder / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(100)
    return [1.0] * epochs


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=10):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path):
    with opened(hangs, tmp_path, time_limit=4.0) as executor:
        found = run(executor, job(0, folder=tmp_path), job(1))
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert "ended after 4 s: the time limit is 4 s" in found[0].error
        assert found[1].curve == (1.0, 1.0)
        assert gone(pids)


def test_nothing_outlives_a_search_that_is_killed(tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.append(sys.argv[2])\n"
        "from tests.nars.test_executors import hangs, job, opened\n"
        "folder = Path(sys.argv[1])\n"
        "with opened(hangs, folder) as executor:\n"
        "    executor.submit(job(0, folder=folder)); executor.wait(100)\n"
    )
    root = Path(__file__).resolve().parents[2]
    search = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), root])
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        assert search.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    search.kill()
    search.wait()
    assert gone(pids)


def test_what_cannot_be_sent_is_refused(tmp_path):
    import threading

    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        opened(lambda candidate, epochs: [lock], tmp_path).__enter__()


def test_executors_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="executor 'cloud' is not one of local, serial, ray"):
        opened(good, tmp_path, "cloud").__enter__()
    with pytest.raises(UsageError, match="serial executor cannot end an evaluation"):
        opened(good, tmp_path, "serial", time_limit=1.0).__enter__()
