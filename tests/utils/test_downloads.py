"""Downloads from a local server, some of which are corrupt or hostile, and the cache."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fbnetv3
from fbnetv3.errors import DataError, UsageError, WeightsError
from fbnetv3.modeling import load_weights
from fbnetv3.utils.downloads import cached_path, download, read_url
from tests.modeling.weight_files import RunsCode, mobile_vision


class Server(http.server.BaseHTTPRequestHandler):
    """Serves weights, an error, truncated weights or a web page, depending on the path."""

    files: dict[str, bytes] = {}
    hits: list[str] = []

    def do_GET(self):
        self.hits.append(self.path)
        if self.path.startswith("/missing"):
            return self.send_error(404)
        content = self.files["page.pth" if self.path.startswith("/page") else self.path.rpartition("/")[2]]
        self.send_response(200)
        if not self.path.startswith("/endless"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(
            content[: len(content) // 2] if self.path.startswith(("/short", "/endless")) else content
        )

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A local server with the weights of an FBNetV3 for digits in the authors' layout."""
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10)
    torch.save({"state_dict": mobile_vision(model), "model_ema": None}, tmp_path / "good.pth")
    torch.save(RunsCode(tmp_path / "trace"), tmp_path / "code.pth")
    Server.files = {name: (tmp_path / name).read_bytes() for name in ("good.pth", "code.pth")}
    Server.files["page.pth"] = b"<!DOCTYPE html><html><body>Sign in</body></html>"
    Server.hits = []
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


def new_model():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10)


def cached_files(cache):
    return [p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_download_is_cached(server, cache):
    model = new_model()
    for _ in range(2):
        assert load_weights(model, f"{server}/a/good.pth").naming == "mobile_vision"
    assert Server.hits == ["/a/good.pth"]
    assert cached_files(cache) == [cached_path(f"{server}/a/good.pth")]


def test_content_that_is_not_cached(server, cache):
    """A URL of an image is read each time, because the image may change."""
    for content in (b"first", b"second"):
        Server.files["a.jpg"] = content
        assert read_url(f"{server}/a.jpg") == content
    assert cached_files(cache) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing/good.pth", "the server returned 404 Not Found"),
        ("/short/good.pth", "download failed .*IncompleteRead"),
        ("/two words.pth", "download failed .*control characters"),
    ],
)
def test_content_that_cannot_be_read(server, path, message):
    with pytest.raises(DataError, match=message) as error:
        read_url(server + path)
    assert str(error.value).startswith(server + path) and "\n" not in str(error.value)


def test_checksums(server, cache):
    checksum = hashlib.sha256(Server.files["good.pth"]).hexdigest()
    assert download(f"{server}/good.pth", checksum).read_bytes() == Server.files["good.pth"]
    with pytest.raises(WeightsError, match=f"SHA-256 is {checksum}, expected 000; the file was deleted"):
        download(f"{server}/good.pth", "000")
    assert cached_files(cache) == []


def test_a_file_that_cannot_be_deleted(server, cache, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"expected 000; delete .*good\.pth: check"):
        download(f"{server}/good.pth", "000")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing/good.pth", "the server returned 404"),
        ("/short/good.pth", "the download was truncated"),
        ("/endless/good.pth", "is corrupt or not a checkpoint .*; it was deleted from the cache"),
        ("/page/good.pth", "is a web page, not weights; it was deleted from the cache"),
    ],
)
def test_downloads_that_are_not_weights(server, cache, path, message):
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(new_model(), server + path)
    assert "\n" not in str(error.value)
    assert cached_files(cache) == []


def test_a_download_that_would_run_code(server, tmp_path):
    for _ in range(2):
        with pytest.raises(WeightsError, match="could run code"):
            load_weights(new_model(), f"{server}/code.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "url", ["http://h/../../etc/x.pth", "http://h/", "http:///x.pth", "http://h/a//x.pth"]
)
def test_urls_that_name_no_file(url):
    with pytest.raises(UsageError, match="is not the URL of a file"):
        download(url)


def test_every_url_has_its_own_path():
    urls = [
        f"http://{rest}"
        for rest in ("h/a/x.pth", "h/b/x.pth", "g/a/x.pth", "h/a/x.pth?s=1/b", "h/a/x.pth?s=2/b")
    ]
    assert len({cached_path(url) for url in urls}) == 5
    assert len(cached_path("http://h/x.pth?sig=" + "0" * 500).name) < 40


@pytest.mark.parametrize("path", ["/missing/good.pth", "/short/good.pth"])
def test_errors_name_the_url_and_the_path(server, path):
    with pytest.raises(WeightsError) as error:
        download(server + path)
    assert server + path in str(error.value)
    assert f"place it at {cached_path(server + path)}" in str(error.value)


def test_no_network(cache):
    with pytest.raises(WeightsError, match="download failed .* place it at") as error:
        download("http://127.0.0.1:9/x/y.pth")
    assert str(cached_path("http://127.0.0.1:9/x/y.pth")) in str(error.value)


def test_an_unwritable_cache(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FBNETV3_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot be written.* set FBNETV3_CACHE to a writable folder"):
        download(f"{server}/good.pth")


def test_two_processes_download_a_file_once(server, cache):
    script = "import sys; from fbnetv3.utils.downloads import download; print(download(sys.argv[1]).stat().st_size)"
    command = [sys.executable, "-c", script, f"{server}/good.pth"]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ}
        )
        for _ in range(2)
    ]
    assert [int(process.communicate(timeout=120)[0]) for process in processes] == [
        len(Server.files["good.pth"])
    ] * 2
    assert Server.hits == ["/good.pth"]


def test_a_killed_download_is_repeated(server, cache):
    """The temporary file of the killed process does not count as the download."""
    path = cached_path(f"{server}/good.pth")
    path.parent.mkdir(parents=True)
    Path(f"{path}.tmp").write_bytes(Server.files["good.pth"][:1000])
    assert download(f"{server}/good.pth").read_bytes() == Server.files["good.pth"]
