"""Output folders and a cache on a file system of some hundred kilobytes: one line that says so, nothing torn."""

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
from tests.hardening.conftest import THOROUGH
from tests.hardening.test_killed_searches import done_in

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
SAYS_SO = ("No space left", "the disk may be full", "no space left", "disk is full", "disk I/O error")


def can_mount():
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small file system")


def sizes(most, *short):
    """Kilobytes: a few, or with the long form many up to the most."""
    count = THOROUGH // 3
    more = [16 + round((most - 16) * i / count) for i in range(count + 1)] if count else []
    return sorted({*short, *more})


def ran_on(disk, kilobytes, command, cwd=ROOT):
    """Runs a command with a small file system at `disk`, whose content lies in `disk`_kept afterwards."""
    kept = disk.with_name(f"{disk.name}_kept")
    disk.mkdir(exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    line = " ".join(f"'{part}'" for part in command)
    mount = f"mount -t tmpfs -o size={kilobytes}k none {disk}"
    script = f"{mount} && {{ {line}; code=$?; cp -r {disk} {kept}; exit $code; }}"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"FBNETV3_CACHE": str(disk / "cache"), "MPLCONFIGDIR": str(disk.parent)}
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment
    )
    return done, kept


def assert_said(done):
    assert done.returncode == 1, done.stdout + done.stderr
    line = done.stderr.rstrip("\n").split("\r")[-1].splitlines()[-1]
    assert line.startswith("error: ") and any(words in line for words in SAYS_SO), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kilobytes", sizes(150, 66))
def test_training(tmp_path, kilobytes):
    arch = tmp_path / "tiny.yaml"
    arch.write_text("name: tiny\nresolution: 8\nstages:\n- rows:\n  - {block: conv, kernel: 3, channels: 64}\n")
    keys = ["MODEL.ARCH", arch, "SOLVER.EPOCHS", 9, "SOLVER.BATCH_SIZE", 512, "CHECKPOINT.KEEP", 9]
    keys += ["OUTPUT_DIR", tmp_path / "disk" / "run", "EMA.ENABLED", True]
    config = "configs/digits/fbnetv3_digits.yaml"
    done, kept = ran_on(tmp_path / "disk", kilobytes, [sys.executable, "tools/train_net.py", "--config", config, *keys])
    assert_said(done)
    if (kept / "run" / "checkpoints").exists():
        checkpoints = Checkpoints(kept / "run" / "checkpoints")
        for path in checkpoints.all():
            checkpoints.load(path)
        assert not list(kept.rglob(".partial*"))


SEARCH = """
from fbnetv3.utils.command_line import run_tool
from fbnetv3.nars.algorithm.nars_search import search
from tests.nars.toy import QUICK, SPACE, evaluate

run_tool(lambda _: search(SPACE, evaluate, "{folder}/out", **{{**QUICK, "rounds": 5}}))
"""


@pytest.mark.parametrize("kilobytes", sizes(24, 20))
def test_searches(tmp_path, kilobytes):
    script = tmp_path / "search.py"
    script.write_text(SEARCH.format(folder=tmp_path / "disk"))
    done, kept = ran_on(tmp_path / "disk", kilobytes, [sys.executable, script])
    if done.returncode:
        assert_said(done)
    if (kept / "out").exists():
        done_in(kept)


@pytest.mark.parametrize("kilobytes", sizes(400, 390))
def test_exports(tmp_path, kilobytes):
    output = tmp_path / "disk" / "exported"
    command = [sys.executable, "tools/export_net.py", "--model", "digits/fbnetv3_digits", "--format", "torch-export"]
    done, kept = ran_on(tmp_path / "disk", kilobytes, [*command, "--output", output])
    assert_said(done)
    assert not list(kept.glob("exported/*")) and not list(kept.glob(".partial*"))
    with pytest.raises(ExportError):
        load(kept / "exported")


class Large(http.server.BaseHTTPRequestHandler):
    content = bytes(range(256)) * 2000

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("kilobytes", sizes(300, 300))
def test_downloads(tmp_path, kilobytes):
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Large)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{instance.server_port}/large.pth"
    call = f"run_tool(lambda _: download('{url}', '{hashlib.sha256(Large.content).hexdigest()}'))"
    script = tmp_path / "fetch.py"
    script.write_text(
        f"from fbnetv3.utils.command_line import run_tool\nfrom fbnetv3.utils.files import download\n\n{call}\n"
    )
    try:
        done, kept = ran_on(tmp_path / "disk", kilobytes, [sys.executable, script])
    finally:
        instance.shutdown()
        instance.server_close()
    assert_said(done)
    assert not [path for path in kept.rglob("*") if path.is_file() and path.suffix != ".lock"]
