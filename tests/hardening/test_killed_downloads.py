"""Killed and concurrent downloads: the cache never holds a wrong file, and the next download completes it."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from fbnetv3.utils.downloads import cached_path
from tests.hardening import process_targets
from tests.hardening.conftest import SCALE
from tests.hardening.killing import kill_after, kill_randomly, wait_for_exit

KILLS = 4 * SCALE
CHUNKS = 40
PAUSE = 0.005
CONTENT = np.random.default_rng(0).bytes(CHUNKS * 5000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class SlowHandler(http.server.BaseHTTPRequestHandler):
    """Serves the content in small chunks, with a pause after each."""

    requested: list[str] = []

    def do_GET(self):
        self.requested.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        size = len(CONTENT) // CHUNKS
        try:
            for start in range(0, len(CONTENT), size):
                self.wfile.write(CONTENT[start : start + size])
                self.wfile.flush()
                time.sleep(PAUSE)
        except OSError:  # the client was killed
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


def start_download(forkserver, *arguments):
    process = forkserver.Process(target=process_targets.run_download, args=arguments)
    process.start()
    return process


def test_downloads_killed_at_any_time_are_completed_later(forkserver, server, cache, rng):
    kills = 0
    kills_during_write = 0
    files = 0
    while kills < KILLS:
        url = f"{server}/killed/{files}.pth"
        path = cached_path(url)
        temporary = path.with_name(f"{path.name}.tmp")
        while True:
            process = start_download(forkserver, url, cache, SHA256 if files % 2 else None)
            if kills >= KILLS:
                assert wait_for_exit(process) == 0
                break
            if not kill_randomly(process, cache, temporary.name, rng, 2.5 * CHUNKS * PAUSE):
                assert process.exitcode == 0
                break
            kills += 1
            kills_during_write += temporary.exists()
            assert not path.exists() or path.read_bytes() == CONTENT
        assert path.read_bytes() == CONTENT
        assert not temporary.exists()
        files += 1
    print(f"downloads: {kills} kills, {kills_during_write} of them during a write, {files} files")


def test_concurrent_processes_download_a_file_once(forkserver, server, cache):
    for number in range(2 * SCALE):
        url = f"{server}/concurrent/{number}.pth"
        processes = [start_download(forkserver, url, cache, SHA256) for _ in range(3)]
        assert [wait_for_exit(process) for process in processes] == [0] * 3
        assert cached_path(url).read_bytes() == CONTENT
        assert SlowHandler.requested.count(f"/concurrent/{number}.pth") == 1


def test_a_waiting_process_takes_over_from_a_killed_one(forkserver, server, cache, rng):
    for number in range(2 * SCALE):
        url = f"{server}/one/{number}.pth"
        processes = [start_download(forkserver, url, cache) for _ in range(3)]
        kill_after(processes[0], rng.uniform(0, 1.5 * CHUNKS * PAUSE))
        assert [wait_for_exit(process) for process in processes[1:]] == [0] * 2
        assert cached_path(url).read_bytes() == CONTENT
