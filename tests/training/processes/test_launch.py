"""Several processes without torchrun: they find each other, and end together."""

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

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys, time
from functools import partial
from pathlib import Path
from fbnetv3.utils.command_line import run_tool
from fbnetv3.training.processes.distributed import joined
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupt
from fbnetv3.training.processes.launch import launch
from fbnetv3.errors import UsageError


def work(folder, what):
    with joined("cpu") as world:
        (folder / str(world.rank)).write_text(str(world.sum(world.rank + 1)))
        if what == "fail":
            raise UsageError(f"not like this, {world.size}")
        with deferred_interrupt():
            while what == "wait":
                time.sleep(0.05)
                check_interrupt()


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    run_tool(lambda _: launch(partial(work, folder, what), 2, after_interrupt="go on"), after_interrupt="go on")
"""


@pytest.fixture
def start(tmp_path):
    """`start(what)` starts two processes: "fail" or "wait"."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
    environment |= {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return lambda what: subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path, what], **pipes)


def test_an_error_is_said_by_each_and_ends_with_its_code(start):
    process = start("fail")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: not like this, 2" in err.splitlines() or "[process 1] error: not like this, 2" in err.splitlines()
    assert "Traceback" not in err


def test_they_find_each_other_and_sigterm_to_the_first_one_ends_all(start, tmp_path):
    process = start("wait")
    end = time.monotonic() + 120
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "terminated; go on\n")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[3.0]", "[3.0]"]


def test_one_process_is_this_one():
    found = []
    launch(partial(found.append, os.getpid()), 1)
    assert found == [os.getpid()]


def test_wrong_calls(monkeypatch):
    with pytest.raises(UsageError, match="--num-gpus 0 is not at least 1"):
        launch(print, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun has started several processes already"):
        launch(print, 2)


def test_an_error_is_written_in_one_piece(monkeypatch):
    """Those of several processes would end up on one line otherwise."""

    class Pieces(list):
        write, flush = list.append, lambda self: None

    def fails(argv):
        raise UsageError("not like this")

    monkeypatch.setattr("sys.stderr", pieces := Pieces())
    with pytest.raises(SystemExit):
        run_tool(fails)
    assert pieces == ["error: not like this\n"]
