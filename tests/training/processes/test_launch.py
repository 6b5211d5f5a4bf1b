"""Several processes without torchrun form a group and end together."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.training.processes.launch import launch
from fbnetv3.utils.command_line import run_tool

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, sys, time
from functools import partial
from pathlib import Path
from fbnetv3.utils.command_line import run_tool
from fbnetv3.training.processes.distributed import process_group
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupts
from fbnetv3.training.processes.launch import launch
from fbnetv3.errors import UsageError


def work(folder, action):
    with process_group("cpu") as group:
        (folder / str(group.rank)).write_text(str(group.sum(group.rank + 1)))
        if action == "fail":
            raise UsageError(f"failed in {group.size} processes")
        with deferred_interrupts():
            while action == "wait":
                time.sleep(0.05)
                check_interrupt()


if __name__ == "__main__":
    run = partial(work, Path(sys.argv[1]), sys.argv[2])
    run_tool(lambda _: launch(run, 2, after_interrupt="resume it"), after_interrupt="resume it")
"""


@pytest.fixture
def start(tmp_path):
    """Start two processes by `start(action)`: "fail" or "wait"."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]),
    }
    environment |= {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return lambda action: subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, action], **pipes
    )


def test_each_process_reports_its_error_and_the_exit_code_is_kept(start):
    process = start("fail")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    line = "error: failed in 2 processes"
    assert line in err.splitlines() or f"[process 1] {line}" in err.splitlines()
    assert "Traceback" not in err


def test_processes_form_a_group_and_sigterm_to_the_parent_ends_all(start, tmp_path):
    process = start("wait")
    deadline = time.monotonic() + 120
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "terminated; resume it\n")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[3.0]", "[3.0]"]


def test_a_single_process_is_not_started():
    pids = []
    launch(partial(pids.append, os.getpid()), 1)
    assert pids == [os.getpid()]


def test_inside_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun has already started several processes"):
        launch(print, 2)


def test_an_error_is_written_at_once(monkeypatch):
    """Otherwise the errors of several processes could be interleaved within a line."""

    class Writes(list):
        write, flush = list.append, lambda self: None

    def fail(argv):
        raise UsageError("wrong call")

    monkeypatch.setattr("sys.stderr", writes := Writes())
    with pytest.raises(SystemExit):
        run_tool(fail)
    assert writes == ["error: wrong call\n"]
