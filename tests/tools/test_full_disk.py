"""Runs on a file system of a few megabytes: a one-line error, and older checkpoints can be resumed elsewhere."""

import shutil
import subprocess
import sys

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.utils.files import PARTIAL_PREFIX
from tests.tools.conftest import TOOLS

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.EPOCHS", "4", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BATCH_SIZE", "256", "EVAL.PERIOD", "4"]


def can_mount():
    try:
        return (
            subprocess.run(
                [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


small_disks = pytest.mark.skipif(
    not can_mount(), reason="needs user namespaces to mount a small file system"
)


@small_disks
def test_teacher_logits_that_do_not_fit(tmp_path):
    """They are written by a memory map, where a full disk would end the process by SIGBUS."""
    teacher = ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "zoo://digits/fbnetv3_digits"]
    more = [*teacher, "DISTILL.VIEWS", "100", "DISTILL.CACHE", tmp_path / "logits"]
    command = " ".join(map(str, [sys.executable, TOOLS / "cache_teacher.py", "--config", DIGITS, *more]))
    script = f"mount -t tmpfs -o size=1m none {tmp_path} && {command}"
    process = subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (
        1,
        f"error: {tmp_path}/logits: cannot be written: No space left on device\n",
    )


@small_disks
@pytest.mark.parametrize("megabytes", [1, 4, 6])
def test_a_full_disk_ends_a_run_and_keeps_older_checkpoints(tmp_path, megabytes):
    """A checkpoint of this network takes 2.3 MB: the first, the second or the third does not fit."""
    small = tmp_path / "small"
    copy = tmp_path / "copy"
    small.mkdir()
    run = [sys.executable, TOOLS / "train_net.py", "--config", DIGITS, *SHORT, "OUTPUT_DIR", small / "run"]
    command = " ".join(map(str, run))
    mount = f"mount -t tmpfs -o size={megabytes}m none {small}"
    script = f"{mount} && {{ {command}; code=$?; cp -r {small} {copy}; exit $code; }}"
    process = subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert process.returncode == 1, process.stdout + process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"error: {small}/run/") and "cannot be written" in line
    assert "No space left" in line or "the disk may be full" in line
    checkpoints = Checkpoints(copy / "run" / "checkpoints")
    assert not list(checkpoints.folder.glob(f"{PARTIAL_PREFIX}*"))
    if megabytes == 1:
        assert checkpoints.load_newest() is None
        return
    assert checkpoints.load_newest()[1]["epoch"] == (1 if megabytes == 4 else 2)
    shutil.rmtree(small)
    more = [
        sys.executable,
        TOOLS / "train_net.py",
        "--config",
        DIGITS,
        *SHORT,
        "OUTPUT_DIR",
        copy / "run",
        "--resume",
    ]
    subprocess.run([str(part) for part in more], check=True, capture_output=True, timeout=300)
    assert torch.load(copy / "run" / "model_final.pth")["arch"] == "fbnetv3_digits"
