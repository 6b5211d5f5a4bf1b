"""Any path and environment: no home folder, unknown users, folders that cannot be written, names of any script."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fbnetv3.arch import get_arch, save_arch
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError, WeightsError
from fbnetv3.utils.downloads import cache_dir, download
from fbnetv3.utils.files import expand_path, temporary_cache_dir
from fbnetv3.utils.logging_setup import quiet_standard_error
from fbnetv3.utils.plotting import new_figure, prepare_matplotlib
from tests.hardening.process_targets import TINY

TOOLS = Path(__file__).resolve().parents[2] / "tools"
UNKNOWN = "~nobody_of_this_name"

# Runs a tool as a user without an entry in the password database
WITHOUT_USER = """
import pwd, runpy, sys
def unknown_user(*_):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = pwd.getpwnam = unknown_user
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A process without HOME, whose user is unknown."""
    for name in ("HOME", "XDG_CACHE_HOME", "FBNETV3_CACHE", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that it is restored, even if it was not set
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary_cache_dir.cache_clear()
    yield
    temporary_cache_dir.cache_clear()


def test_home_folders_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("~/a b/ü") == tmp_path / "a b" / "ü"
    assert expand_path("a/~b") == Path("a/~b")
    assert expand_path(Path("/a")) == Path("/a")


@pytest.mark.parametrize("path", [UNKNOWN, f"{UNKNOWN}/x.yaml"])
def test_unknown_users_are_named(path):
    with pytest.raises(
        UsageError, match=f"^{path}: {UNKNOWN} has no home folder here; write the full path$"
    ):
        expand_path(path)


def test_home_folders_in_configs_and_their_bases(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("SOLVER: {EPOCHS: 7}")
    (tmp_path / "x.yaml").write_text("_BASE_: ~/base.yaml")
    assert load_config("~/x.yaml").SOLVER.EPOCHS == 7
    save_arch(get_arch("fbnetv3_digits"), "~/arch.yaml")
    assert get_arch("~/arch.yaml").stages == get_arch("fbnetv3_digits").stages
    (tmp_path / "small.yaml").write_text("name: small\n_BASE_: ~/arch.yaml\nderive: {same_padding: true}")
    assert get_arch("~/small.yaml").name == "small"
    (tmp_path / "y.yaml").write_text(f"_BASE_: {UNKNOWN}/base.yaml")
    with pytest.raises(UsageError, match=f"{UNKNOWN}/base.yaml: {UNKNOWN} has no home folder"):
        load_config("~/y.yaml")


def test_the_cache_of_users_without_home(homeless, tmp_path):
    folder = cache_dir()
    assert folder == tmp_path / f"fbnetv3_cache_{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_prepared_is_not_used(homeless, tmp_path, monkeypatch):
    (tmp_path / "fbnetv3_cache_4242").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4242)  # the folder belongs to this process's user
    assert cache_dir() != tmp_path / "fbnetv3_cache_4242"
    assert cache_dir() == cache_dir() and cache_dir().parent == tmp_path


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG])
def test_a_cache_that_cannot_be_written_names_the_variable(number, cache, monkeypatch):
    def fail(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", fail)
    message = f"{cache}/127.0.0.1_9/x: cannot be written: {os.strerror(number)}; set FBNETV3_CACHE"
    with pytest.raises(WeightsError, match=message):
        download("http://127.0.0.1:9/x/y.pth")


def test_matplotlib_is_quiet_without_home(homeless, tmp_path, capfd, caplog):
    prepare_matplotlib()
    assert os.environ["MPLCONFIGDIR"] == str(cache_dir() / "matplotlib")
    with caplog.at_level(logging.WARNING):
        new_figure()
    assert capfd.readouterr() == ("", "") and not caplog.messages


def test_matplotlib_keeps_a_home_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    prepare_matplotlib()
    assert "MPLCONFIGDIR" not in os.environ


def test_child_processes_are_quiet_within_the_block_only(capfd):
    command = [sys.executable, "-c", "import sys; sys.stderr.write('noise')"]
    with quiet_standard_error():
        subprocess.run(command, check=True)
    assert capfd.readouterr().err == ""
    subprocess.run(command, check=True)
    assert capfd.readouterr().err == "noise"


def run_without_home(tmp_path, tool, *arguments):
    """Run a tool without HOME and user, in a folder whose name has a space and other scripts."""
    folder = tmp_path / "мои фото"
    folder.mkdir(exist_ok=True)
    hidden = (
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "FBNETV3_CACHE",
        "MPLCONFIGDIR",
        "USER",
        "LOGNAME",
    )
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(TOOLS.parent)}
    command = [sys.executable, "-c", WITHOUT_USER, TOOLS / tool, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_training_evaluating_and_resuming_without_home(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--config", TOOLS.parent / "configs/digits/fbnetv3_digits.yaml"]
    keys = [*("MODEL.ARCH", tmp_path / "tiny.yaml"), *("OUTPUT_DIR", "вы ход/" + "ü" * 100)]
    keys += ["SOLVER.EPOCHS", 1, "SOLVER.WARMUP_EPOCHS", 0, "DATA.WORKERS", 0]
    trained = run_without_home(tmp_path, "train_net.py", *arguments, *keys)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "atplotlib" not in trained.stdout
    result = next(line for line in trained.stdout.splitlines() if line.startswith("top1 "))
    evaluated = run_without_home(tmp_path, "train_net.py", *arguments, "--eval-only", *keys)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert evaluated.stdout.splitlines()[-1] == result


def test_classifying_without_home(tmp_path):
    (tmp_path / "мои фото").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "мои фото" / "ноль 0.png")
    arguments = ["digits/fbnetv3_digits", "ноль 0.png"]
    classified = run_without_home(tmp_path, "classify.py", *arguments)
    assert (classified.returncode, classified.stderr) == (0, "")
    assert "ноль 0.png" in classified.stdout
    unknown = run_without_home(tmp_path, "classify.py", "digits/fbnetv3_digits", "~/x.png")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: ~/x.png: ~ has no home folder here; write the full path\n"
