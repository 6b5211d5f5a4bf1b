"""What the tests share."""

import os
from pathlib import Path

import pytest
import torch

from fbnetv3.arch.library import ARCHS, _load_shipped

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def shared():
    """The folder with published facts and real data; tests that need it are skipped without it."""
    if not (SHARED / "facts").is_dir():
        pytest.skip("the folder with published facts is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def registered():
    """Takes out again what a test has registered."""
    _load_shipped()
    before = set(ARCHS.names())
    yield
    for name in set(ARCHS.names()) - before:
        ARCHS.remove(name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A download cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FBNETV3_CACHE", str(folder))
    return folder
