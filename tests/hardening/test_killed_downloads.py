"""Downloads that are killed, and several at once: the cache never holds a wrong file, and the next one gets it."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from fbnetv3.utils.downloads import cached_path
from tests.hardening import victims
from tests.hardening.conftest import THOROUGH
from tests.hardening.killing import ended, kill, kill_at

KILLS = 4 * THOROUGH
CHUNKS, PAUSE = 40, 0.005
CONTENT = np.random.default_rng(0).bytes(CHUNKS * 5000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Slow(http.server.BaseHTTPRequestHandler):
    """Serves the content, drop by drop."""

    hits: list[str] = []

    def do_GET(self):
        self.hits.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        size = len(CONTENT) // CHUNKS
        try:
            for start in range(0, len(CONTENT), size):
                self.wfile.write(CONTENT[start : start + size])
                self.wfile.flush()
                time.sleep(PAUSE)
        except OSError:  # who asked is gone
            pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


def started(nursery, *arguments):
    process = nursery.Process(target=victims.fetch, args=arguments)
    process.start()
    return process


def test_killed_at_any_moment(nursery, server, cache, chance):
    kills = torn = files = 0
    while kills < KILLS:
        url = f"{server}/killed/{files}.pth"
        place = cached_path(url)
        while True:
            process = started(nursery, url, cache, SHA256 if files % 2 else None)
            if kills >= KILLS:
                assert ended(process) == 0
                break
            if not kill(process, cache, f"{place.name}.tmp", chance, 2.5 * CHUNKS * PAUSE):
                assert process.exitcode == 0
                break
            kills += 1
            torn += place.with_name(f"{place.name}.tmp").exists()
            assert not place.exists() or place.read_bytes() == CONTENT
        assert place.read_bytes() == CONTENT
        assert not place.with_name(f"{place.name}.tmp").exists()
        files += 1
    print(f"downloads: {kills} kills, {torn} of them in a write, {files} files")


def test_several_at_once_download_it_once(nursery, server, cache):
    for number in range(2 * THOROUGH):
        url = f"{server}/several/{number}.pth"
        group = [started(nursery, url, cache, SHA256) for _ in range(3)]
        assert [ended(process) for process in group] == [0] * 3
        assert cached_path(url).read_bytes() == CONTENT
        assert Slow.hits.count(f"/several/{number}.pth") == 1


def test_one_of_several_is_killed(nursery, server, cache, chance):
    """Whoever waits for it takes over."""
    for number in range(2 * THOROUGH):
        url = f"{server}/one/{number}.pth"
        group = [started(nursery, url, cache) for _ in range(3)]
        kill_at(group[0], chance.uniform(0, 1.5 * CHUNKS * PAUSE))
        assert [ended(process) for process in group[1:]] == [0] * 2
        assert cached_path(url).read_bytes() == CONTENT
