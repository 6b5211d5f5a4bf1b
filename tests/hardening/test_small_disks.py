"""A full disk: one line that says so, and no partial files."""

import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fbnetv3.deploy import load
from fbnetv3.errors import ExportError
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.utils.files import PARTIAL_PREFIX
from tests.hardening.conftest import SCALE
from tests.hardening.test_killed_searches import completed_segments

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
DISK_FULL_MESSAGES = (
    "No space left",
    "the disk may be full",
    "no space left",
    "disk is full",
    "disk I/O error",
)


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


pytestmark = pytest.mark.skipif(
    not can_mount(), reason="needs user namespaces to mount a small file system"
)


def disk_sizes(default, largest):
    """Return disk sizes in kilobytes: the default one, and with `make harden` many up to the largest."""
    count = SCALE // 3
    more = [16 + round((largest - 16) * i / count) for i in range(count + 1)] if count else []
    return sorted({default, *more})


def run_on_small_disk(disk, kilobytes, command):
    """Run a command with a small file system mounted at `disk`.

    Returns:
        The completed process, and a folder with a copy of the disk's content.
    """
    copy = disk.with_name(f"{disk.name}_copy")
    disk.mkdir(exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    line = " ".join(f"'{part}'" for part in command)
    mount = f"mount -t tmpfs -o size={kilobytes}k none {disk}"
    script = f"{mount} && {{ {line}; code=$?; cp -r {disk} {copy}; exit $code; }}"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"FBNETV3_CACHE": str(disk / "cache"), "MPLCONFIGDIR": str(disk.parent)}
    process = subprocess.run(
        [*NAMESPACE, "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment,
    )
    return process, copy


def assert_one_line_about_the_full_disk(process):
    assert process.returncode == 1, process.stdout + process.stderr
    line = process.stderr.rstrip("\n").split("\r")[-1].splitlines()[-1]
    assert line.startswith("error: ") and any(text in line for text in DISK_FULL_MESSAGES), process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("kilobytes", disk_sizes(66, largest=150))
def test_training_on_a_full_disk(tmp_path, kilobytes):
    arch = tmp_path / "tiny.yaml"
    arch.write_text(
        "name: tiny\nresolution: 8\nstages:\n- rows:\n  - {block: conv, kernel: 3, channels: 64}\n"
    )
    keys = ["MODEL.ARCH", arch, "SOLVER.EPOCHS", 9, "SOLVER.BATCH_SIZE", 512, "CHECKPOINT.KEEP", 9]
    keys += ["OUTPUT_DIR", tmp_path / "disk" / "run", "EMA.ENABLED", True]
    command = [
        sys.executable,
        "tools/train_net.py",
        "--config",
        "configs/digits/fbnetv3_digits.yaml",
        *keys,
    ]
    process, copy = run_on_small_disk(tmp_path / "disk", kilobytes, command)
    assert_one_line_about_the_full_disk(process)
    if (copy / "run" / "checkpoints").exists():
        checkpoints = Checkpoints(copy / "run" / "checkpoints")
        for path in checkpoints.paths():
            checkpoints.load(path)
        assert not list(copy.rglob(f"{PARTIAL_PREFIX}*"))


SEARCH = """
from fbnetv3.utils.command_line import run_tool
from fbnetv3.nars.algorithm.nars_search import search
from tests.nars.toy import QUICK, SPACE, evaluate

run_tool(lambda _: search(SPACE, evaluate, "{folder}/out", **{{**QUICK, "evaluations": 60}}))
"""


@pytest.mark.parametrize("kilobytes", disk_sizes(20, largest=24))
def test_search_on_a_full_disk(tmp_path, kilobytes):
    script = tmp_path / "search.py"
    script.write_text(SEARCH.format(folder=tmp_path / "disk"))
    process, copy = run_on_small_disk(tmp_path / "disk", kilobytes, [sys.executable, script])
    if process.returncode:
        assert_one_line_about_the_full_disk(process)
    if (copy / "out").exists():
        completed_segments(copy)


@pytest.mark.parametrize("kilobytes", disk_sizes(390, largest=400))
def test_export_on_a_full_disk(tmp_path, kilobytes):
    output = tmp_path / "disk" / "exported"
    command = [
        sys.executable,
        "tools/export_net.py",
        "--model",
        "digits/fbnetv3_digits",
        "--format",
        "torch-export",
    ]
    process, copy = run_on_small_disk(tmp_path / "disk", kilobytes, [*command, "--output", output])
    assert_one_line_about_the_full_disk(process)
    assert not list(copy.glob("exported/*")) and not list(copy.glob(f"{PARTIAL_PREFIX}*"))
    with pytest.raises(ExportError):
        load(copy / "exported")


class LargeFileHandler(http.server.BaseHTTPRequestHandler):
    content = bytes(range(256)) * 2000

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("kilobytes", disk_sizes(300, largest=300))
def test_download_on_a_full_disk(tmp_path, kilobytes):
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LargeFileHandler)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{instance.server_port}/large.pth"
    call = (
        f"run_tool(lambda _: download('{url}', '{hashlib.sha256(LargeFileHandler.content).hexdigest()}'))"
    )
    script = tmp_path / "fetch.py"
    script.write_text(
        f"from fbnetv3.utils.command_line import run_tool\nfrom fbnetv3.utils.downloads import download\n\n{call}\n"
    )
    try:
        process, copy = run_on_small_disk(tmp_path / "disk", kilobytes, [sys.executable, script])
    finally:
        instance.shutdown()
        instance.server_close()
    assert_one_line_about_the_full_disk(process)
    assert not [path for path in copy.rglob("*") if path.is_file() and path.suffix != ".lock"]
