"""Where the runtime for browsers comes from, and what is said if it cannot be had."""

import io
import os
import tarfile

import pytest

from fbnetv3.deploy.web.browser_runtime import (
    CPU_FILES,
    GPU_FILES,
    VERSION,
    browser_runtime_version,
    copy_browser_runtime,
    fetch_browser_runtime,
)
from fbnetv3.errors import DataError, MissingPackageError, UsageError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no runtime named by the user."""
    monkeypatch.setenv("FBNETV3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FBNETV3_ONNXRUNTIME_WEB", raising=False)
    return tmp_path / "cache"


def write_archive(path, names):
    with tarfile.open(path, "w:gz") as archive:
        contents = {f"dist/{name}": name for name in names} | {"package.json": '{"version": "9.8.7"}'}
        for name, text in contents.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def use_npm(script, tmp_path, monkeypatch):
    """Make `npm` this shell script, the only program on the path."""
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_a_package_that_the_user_names(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "own.tgz", (*CPU_FILES, *GPU_FILES))
    monkeypatch.setenv("FBNETV3_ONNXRUNTIME_WEB", str(archive))
    copy_browser_runtime(tmp_path / "runtime", with_gpu=False)
    assert {path.name: path.read_text() for path in (tmp_path / "runtime").iterdir()} == {
        name: name for name in CPU_FILES
    }
    assert browser_runtime_version() == "9.8.7"
    # The folder node_modules/onnxruntime-web has the same layout
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    monkeypatch.setenv("FBNETV3_ONNXRUNTIME_WEB", str(tmp_path / "package"))
    copy_browser_runtime(tmp_path / "both", with_gpu=True)
    assert {path.name for path in (tmp_path / "both").iterdir()} == {*CPU_FILES, *GPU_FILES}
    assert browser_runtime_version() == "9.8.7"
    monkeypatch.setenv("FBNETV3_ONNXRUNTIME_WEB", str(tmp_path / "package" / "dist"))
    copy_browser_runtime(tmp_path / "files", with_gpu=False)
    assert browser_runtime_version() == "unknown"


def test_a_package_without_a_file(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "own.tgz", CPU_FILES[:2])
    monkeypatch.setenv("FBNETV3_ONNXRUNTIME_WEB", str(archive))
    with pytest.raises(DataError, match=r"own\.tgz/ort-wasm-simd-threaded\.wasm: does not exist"):
        copy_browser_runtime(tmp_path / "one", with_gpu=False)
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"own\.tgz: is not a \.tgz of onnxruntime-web"):
        copy_browser_runtime(tmp_path / "two", with_gpu=False)
    monkeypatch.setenv("FBNETV3_ONNXRUNTIME_WEB", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"FBNETV3_ONNXRUNTIME_WEB: .*nowhere does not exist"):
        fetch_browser_runtime()


def test_without_npm(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError) as error:
        fetch_browser_runtime()
    assert "npm, which is not installed" in str(error.value)
    assert f"npm pack onnxruntime-web@{VERSION}" in str(error.value)
    assert "set FBNETV3_ONNXRUNTIME_WEB to its path" in str(error.value)


def test_npm_without_a_network(cache, tmp_path, monkeypatch):
    use_npm("echo 'npm error network is down' >&2; exit 1", tmp_path, monkeypatch)
    with pytest.raises(
        MissingPackageError, match="npm cannot fetch it .npm error network is down.: check the"
    ):
        fetch_browser_runtime()
    assert os.listdir(cache / "npm") == []


def test_another_package_than_the_pinned_one_is_refused(cache, tmp_path, monkeypatch):
    use_npm(f"echo other > onnxruntime-web-{VERSION}.tgz", tmp_path, monkeypatch)
    with pytest.raises(DataError, match="SHA-256 is .*, expected .*; the file was deleted"):
        fetch_browser_runtime()
    assert os.listdir(cache / "npm") == []


def test_it_is_fetched_once(cache, browser_runtime, tmp_path, monkeypatch):
    use_npm(f'/bin/cp "{browser_runtime}" onnxruntime-web-{VERSION}.tgz', tmp_path, monkeypatch)
    archive = fetch_browser_runtime()
    (tmp_path / "bin" / "npm").unlink()
    assert fetch_browser_runtime() == archive
    copy_browser_runtime(tmp_path / "runtime", with_gpu=True)
    assert (tmp_path / "runtime" / "ort.wasm.min.mjs").read_bytes().startswith(b"/*!\n * ONNX Runtime Web")
    assert browser_runtime_version() == VERSION
    size = sum(path.stat().st_size for path in (tmp_path / "runtime").iterdir())
    assert size == pytest.approx(41e6, rel=0.02)
