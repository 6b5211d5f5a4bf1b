"""What the tests share."""

import signal

import pytest

from fbnetv3.arch import ARCHS

# Where tests are started in the background, Ctrl-C is ignored, in all that they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def registered():
    """Takes out again what a test has registered."""
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
