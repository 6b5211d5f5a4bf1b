"""The command `fbnetv3` and the scripts in tools/, which run the same modules."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

import fbnetv3 as package
from fbnetv3.commands.cli import COMMANDS
from tests.tools.conftest import TOOLS

SCRIPTS = {
    "train": "train_net",
    "predict": "classify",
    "detect": "detect",
    "search": "search_net",
    "export": "export_net",
    "measure": "measure_net",
    "analyze": "analyze_net",
    "check-data": "check_data",
    "convert-annotations": "convert_annotations",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_in_its_own_name(name, fbnetv3):
    ran = fbnetv3(name, "--help")
    assert ran.code == 0 and ran.out.startswith(f"usage: fbnetv3 {name}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_runs_its_command(name):
    assert f'run("{name}")' in (TOOLS / f"{SCRIPTS[name]}.py").read_text()
    assert import_module(f"fbnetv3.commands.{COMMANDS[name].module}").main


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_list_of_commands(fbnetv3, arguments):
    ran = fbnetv3(*arguments)
    assert ran.code == 0 and all(f"  {name} " in ran.out for name in COMMANDS)


def test_the_version(fbnetv3):
    assert fbnetv3("--version").out == f"{package.__version__}\n"


def test_an_unknown_command(fbnetv3):
    ran = fbnetv3("tran")
    assert (ran.code, ran.err) == (2, "error: unknown command 'tran': did you mean train?\n")


def test_an_unknown_option_names_the_command(fbnetv3):
    ran = fbnetv3("zoo", "--fast")
    assert ran.code == 2 and ran.err.endswith("see fbnetv3 zoo --help\n") and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import sys; from fbnetv3.commands.cli import main; main()", "train"],
        [str(TOOLS / "train_net.py")],
    ],
    ids=["fbnetv3 train", "tools/train_net.py"],
)
def test_ctrl_c_while_torch_is_imported_is_one_line(command, tmp_path):
    # A torch whose import says that it has begun, and takes long
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted; add --resume to continue from the newest checkpoint, if there is one\n"
