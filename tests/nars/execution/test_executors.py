"""Executors on this machine: outcomes, failures, and no leftover processes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fbnetv3.errors import UnknownNameError, UsageError, UserError
from fbnetv3.nars.execution.attempts import SearchContext, TrialAttempt
from fbnetv3.nars.execution.executors import EXECUTORS, ExecutorOptions, open_executor
from fbnetv3.nars.execution.local_executor import SerialExecutor
from tests.nars.execution.execution_helpers import SPACE, make_attempt, open_for_tests, run_attempts

ROOT = Path(__file__).resolve().parents[3]


def greeting(candidate, epochs):
    print("hello from", candidate["a"])
    return [candidate["a"] + candidate.seed] * epochs


@pytest.mark.parametrize("name", ["local", "serial"])
def test_every_attempt_has_an_outcome(name, tmp_path):
    with open_for_tests(greeting, tmp_path, name) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(5)))
    curves = {number: outcome.curve for number, outcome in outcomes.items()}
    assert curves == {number: (number + 7.0, number + 7.0) for number in range(5)}
    if name == "local":
        logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
        assert all(f"hello from {number}" in logs for number in range(5))


def test_a_candidate_knows_its_trial(tmp_path):
    def evaluate(candidate, epochs):
        assert (candidate.number, candidate.epochs, candidate.full_epochs) == (3, epochs, 9)
        return [float(candidate.attempt)] * epochs

    attempt = TrialAttempt(5, 3, np.array([0]), 2, 9, seed=7, folder=None, failed_attempts=1)
    with open_for_tests(evaluate, tmp_path, "serial") as executor:
        outcomes = run_attempts(executor, attempt)
    assert outcomes[5].curve == (1.0, 1.0)


class PreparesWorkers:
    def prepare_worker(self):
        os.environ["PREPARED"] = "yes"

    def __call__(self, candidate, epochs):
        return [float("PREPARED" in os.environ)] * epochs


@pytest.mark.parametrize(("name", "prepared"), [("local", 1.0), ("serial", 0.0)])
def test_evaluators_prepare_only_worker_processes(name, prepared, tmp_path):
    with open_for_tests(PreparesWorkers(), tmp_path, name) as executor:
        outcomes = run_attempts(executor, make_attempt(0))
    assert outcomes[0].curve == (prepared, prepared)


def test_a_function_of_a_script_needs_no_main_guard(tmp_path):
    """Closures, lambdas, and modules in the script's folder work too."""
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    (script.parent / "beside_the_script.py").write_text("offset = 10\n")
    script.write_text(
        "import sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.nars.execution.execution_helpers import make_attempt, open_for_tests, run_attempts\n"
        "import beside_the_script\n"
        "evaluate = lambda candidate, epochs: [candidate['a'] + beside_the_script.offset] * epochs\n"
        "with open_for_tests(evaluate, Path('.'), workers=1) as executor:\n"
        "    print(run_attempts(executor, make_attempt(3))[3].curve)\n"
        "def fail(candidate, epochs):\n"
        "    raise KeyError(*(name for name in ['missing']))\n"
        "with open_for_tests(fail, Path('.'), workers=1) as executor:\n"
        "    print(run_attempts(executor, make_attempt(0))[0].error)\n"
    )
    done = subprocess.run(
        [sys.executable, script, ROOT], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    error = "KeyError: 'missing' (in script.py, line 9); traceback in logs/worker_0.txt"
    assert done.stdout.splitlines() == ["(13.0, 13.0)", error]
    assert "raise KeyError" in (tmp_path / "logs" / "worker_0.txt").read_text()


def closes_its_output(candidate, epochs):
    sys.stdout.close()
    os.close(1)
    return [1.0] * epochs


def test_an_evaluator_may_close_its_output(tmp_path):
    with open_for_tests(closes_its_output, tmp_path, workers=1) as executor:
        outcomes = run_attempts(executor, make_attempt(0))
        assert outcomes[0].curve == (1.0, 1.0)
    assert "--- trial 0" in (tmp_path / "logs" / "worker_0.txt").read_text()


def fails_in_several_ways(candidate, epochs):
    if candidate["a"] == 0:
        raise ZeroDivisionError("what now")
    if candidate["a"] == 1:
        os._exit(3)
    if candidate["a"] == 2:
        os.kill(os.getpid(), 9)
    if candidate["a"] == 4:
        os.kill(os.getpid(), 36)  # a real-time signal, which has no name
    return [0.5] * (epochs - 1 if candidate["a"] == 3 else epochs)


def test_errors_say_how_an_evaluation_failed(tmp_path):
    with open_for_tests(fails_in_several_ways, tmp_path) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(6)))
    assert outcomes[0].error.startswith("ZeroDivisionError: what now (in test_executors.py, line ")
    assert "the worker process exited with code 3" in outcomes[1].error
    assert "the worker process was killed by SIGKILL (out of memory?)" in outcomes[2].error
    assert "expected one accuracy for each of 2 epochs, got 1" in outcomes[3].error
    assert "the worker process was killed by signal 36" in outcomes[4].error
    assert outcomes[5].curve == (0.5, 0.5)


def fails_in_a_library(candidate, epochs):
    if candidate["a"] == 0:
        json.loads("{")
    np.linalg.inv(np.zeros((2, 2)))


@pytest.mark.parametrize(("name", "log"), [("local", "worker_0.txt"), ("serial", "tracebacks.txt")])
def test_errors_name_the_users_line_and_where_the_traceback_is(name, log, tmp_path):
    first_line = fails_in_a_library.__code__.co_firstlineno
    with open_for_tests(fails_in_a_library, tmp_path, name, workers=1) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(2)))
    for number, error in enumerate(
        ("JSONDecodeError: Expecting property name", "LinAlgError: Singular matrix")
    ):
        assert outcomes[number].error.startswith(error)
        assert outcomes[number].error.endswith(
            f"(in test_executors.py, line {first_line + 2 + number}); traceback in logs/{log}"
        )
    text = (tmp_path / "logs" / log).read_text()
    assert text.count("Traceback (most recent call last)") == 2
    assert "decoder.py" in text


def test_errors_of_users_have_no_traceback(tmp_path):
    def evaluate(candidate, epochs):
        raise UsageError("no such file")

    with open_for_tests(evaluate, tmp_path, "serial") as executor:
        assert run_attempts(executor, make_attempt(0))[0].error == "no such file"
    assert not (tmp_path / "logs").exists()


def fails_then_dies_silently(candidate, epochs):
    if candidate["a"] == 0:
        raise ValueError("of the first trial")
    if candidate["a"] == 2:
        print("dying")
        sys.stdout.flush()
    os.kill(os.getpid(), 9)


def test_a_dead_worker_is_described_by_what_it_wrote_in_this_trial(tmp_path):
    with open_for_tests(fails_then_dies_silently, tmp_path, workers=1) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(3)))
    killed = "the worker process was killed by SIGKILL (out of memory?)"
    assert [outcomes[number].error for number in (1, 2)] == [killed, f"{killed}: dying"]


def shows_its_gpus(candidate, epochs):
    (candidate.folder / f"gpus_{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return [1.0] * epochs


@pytest.mark.parametrize(
    ("num_gpus", "visible", "expected"),
    [(1, None, ["0", "1"]), (1, "5,GPU-7", ["5", "GPU-7"]), (0.5, "3", ["3", "3"])],
)
def test_each_local_worker_has_gpus_of_its_own(num_gpus, visible, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(visible.split(",")) if visible else 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with open_for_tests(shows_its_gpus, tmp_path, resources={"num_gpus": num_gpus}) as executor:
        outcomes = run_attempts(executor, *(make_attempt(number, folder=tmp_path) for number in range(4)))
    assert all(outcome.error is None for outcome in outcomes.values())
    assert sorted(file.read_text() for file in tmp_path.glob("gpus_*")) == expected


def test_more_workers_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UsageError, match=r"2 workers with num_gpus 1 do not fit on 1 visible GPUs \(0\)"):
        open_for_tests(shows_its_gpus, tmp_path, resources={"num_gpus": 1}).__enter__()
    with pytest.raises(UsageError, match="resources.num_gpus: 'all' must be a number"):
        open_for_tests(shows_its_gpus, tmp_path, resources={"num_gpus": "all"}).__enter__()


def dies_and_leaves_a_child(candidate, epochs):
    """Die while a child process keeps the pipe open, or exit."""
    if candidate["a"] == 0 and os.fork():
        os.kill(os.getpid(), 9)
    if candidate["a"] == 0:
        time.sleep(100)
    if candidate["a"] == 1:
        sys.exit("enough")
    return [1.0] * epochs


def test_a_dead_worker_is_noticed_although_its_child_lives(tmp_path):
    with open_for_tests(dies_and_leaves_a_child, tmp_path) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(3)))
    assert "killed by SIGKILL" in outcomes[0].error
    assert outcomes[1].error.startswith("SystemExit: enough")
    assert outcomes[2].curve == (1.0, 1.0)


def closes_its_connection(candidate, epochs):
    socket.socket(fileno=os.dup(int(sys.argv[1]))).shutdown(socket.SHUT_WR)
    time.sleep(100)


def test_a_worker_without_connection_is_not_reported_as_out_of_memory(tmp_path):
    with open_for_tests(closes_its_connection, tmp_path, workers=1) as executor:
        outcomes = run_attempts(executor, make_attempt(0))
    assert outcomes[0].error == "the worker process closed its connection and was killed"


def writes_its_import_path(candidate, epochs):
    Path(candidate.folder / "path").write_text(os.environ.get("PYTHONPATH", "none"))
    return [1.0] * epochs


@pytest.mark.parametrize("python_path", [None, "/somewhere"])
def test_subprocesses_of_evaluators_get_the_users_import_path(tmp_path, monkeypatch, python_path):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if python_path:
        monkeypatch.setenv("PYTHONPATH", python_path)
    with open_for_tests(writes_its_import_path, tmp_path, workers=1) as executor:
        outcomes = run_attempts(executor, make_attempt(0, folder=tmp_path))
    assert outcomes[0].error is None
    assert (tmp_path / "path").read_text() == (python_path or "none")


def test_workers_import_the_users_modules(tmp_path, monkeypatch):
    """Their entries are registered when a candidate is evaluated."""
    (tmp_path / "extension_of_workers.py").write_text(
        "import os\nos.environ['EXTENSION_OF_WORKERS'] = '1'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def evaluate(candidate, epochs):
        return [float(os.environ["EXTENSION_OF_WORKERS"])] * epochs

    context = SearchContext(SPACE, evaluate, imports=["extension_of_workers"])
    with open_executor("local", context, ExecutorOptions(logs=tmp_path)) as executor:
        assert run_attempts(executor, make_attempt(0))[0].curve == (1.0, 1.0)


def hangs(candidate, epochs):
    if candidate["a"] == 0:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        Path(candidate.folder / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(100)
    return [1.0] * epochs


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def have_ended(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_an_overdue_evaluation_is_killed_with_its_subprocesses(tmp_path):
    with open_for_tests(hangs, tmp_path, time_limit=4.0) as executor:
        outcomes = run_attempts(executor, make_attempt(0, folder=tmp_path), make_attempt(1))
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert "killed after 4 s: time_limit is 4 s" in outcomes[0].error
        assert outcomes[1].curve == (1.0, 1.0)
        assert have_ended(pids)


def test_no_worker_outlives_a_killed_search(tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.append(sys.argv[2])\n"
        "from tests.nars.execution.execution_helpers import make_attempt, open_for_tests\n"
        "from tests.nars.execution.test_executors import hangs\n"
        "folder = Path(sys.argv[1])\n"
        "with open_for_tests(hangs, folder) as executor:\n"
        "    executor.submit(make_attempt(0, folder=folder)); executor.wait(100)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), ROOT])
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        assert search.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    search.kill()
    search.wait()
    assert have_ended(pids)


def test_an_evaluator_that_cannot_be_pickled_is_refused(tmp_path):
    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to worker processes"):
        open_for_tests(lambda candidate, epochs: [lock], tmp_path).__enter__()


def test_invalid_executors(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown executor 'cloud': available: local, ray, serial"):
        open_for_tests(greeting, tmp_path, "cloud").__enter__()
    with pytest.raises(UsageError, match="serial executor cannot kill an evaluation"):
        open_for_tests(greeting, tmp_path, "serial", time_limit=1.0).__enter__()


def test_an_executor_of_ones_own(tmp_path):
    EXECUTORS.register(SerialExecutor, name="mine")
    try:
        with open_for_tests(greeting, tmp_path, "mine") as executor:
            assert run_attempts(executor, make_attempt(1))[1].curve == (8.0, 8.0)
    finally:
        EXECUTORS.remove("mine")


class OnGpus:
    """Writes the GPUs that its process sees to the folder of each trial."""

    trial_device = "auto"

    def __call__(self, candidate, epochs):
        return shows_its_gpus(candidate, epochs)


@pytest.mark.parametrize(("gpus", "expected"), [(0, ["", ""]), (1, ["0", "0"]), (3, ["0", "1"])])
def test_workers_are_spread_over_the_gpus_without_a_setting(gpus, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with open_for_tests(OnGpus(), tmp_path) as executor:
        outcomes = run_attempts(executor, *(make_attempt(number, folder=tmp_path) for number in range(4)))
    assert all(outcome.error is None for outcome in outcomes.values())
    assert sorted(file.read_text() for file in tmp_path.glob("gpus_*")) == expected


def breaks_its_gpu(candidate, epochs):
    if candidate["a"] == 1 or "BROKEN" in os.environ:
        os.environ["BROKEN"] = "yes"
        raise RuntimeError("CUDA error: device-side assert triggered")
    return [float(os.getpid())] * epochs


def test_a_broken_gpu_context_costs_one_attempt(tmp_path):
    """The worker's process is replaced, because every later trial in it would fail, too."""
    with open_for_tests(breaks_its_gpu, tmp_path, workers=1) as executor:
        outcomes = run_attempts(executor, *map(make_attempt, range(4)))
    assert outcomes[1].error.startswith(
        "RuntimeError: CUDA error: device-side assert triggered (in test_exec"
    )
    pids = [outcomes[number].curve[0] for number in (0, 2, 3)]
    assert pids[0] != pids[1] == pids[2]


def test_the_serial_executor_stops_after_a_broken_gpu_context(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "yes")  # restored after the test
    with open_for_tests(breaks_its_gpu, tmp_path, "serial") as executor:
        executor.submit(make_attempt(1))
        assert executor.wait(0)[0].error
        executor.submit(make_attempt(2))
        with pytest.raises(
            UserError, match=r"cannot use its GPU anymore \(RuntimeError: CUDA error.*resume"
        ):
            executor.wait(0)


def meets_others(candidate, epochs):
    """Return how many trials run at the same time, and the process."""
    mark = candidate.folder / f"running_{candidate.number}"
    mark.touch()
    time.sleep(0.3)
    running = len(list(candidate.folder.glob("running_*")))
    mark.unlink()
    return [float(running), float(os.getpid())]


def test_an_attempt_that_needs_a_gpu_of_its_own_runs_alone_in_a_new_process(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    attempts = [make_attempt(number, folder=tmp_path, alone=number == 2) for number in range(6)]
    with open_for_tests(meets_others, tmp_path, resources={"num_gpus": 0.5}) as executor:
        outcomes = run_attempts(executor, *attempts)
    running, pids = zip(*(outcomes[number].curve for number in range(6)), strict=True)
    assert running[2] == 1
    # The processes before it held memory of the GPU, and its own was not limited to a share
    assert len({*pids[:2]} & {pids[2]}) == len({*pids[:3]} & {*pids[3:]}) == 0
