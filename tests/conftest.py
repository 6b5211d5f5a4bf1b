"""Fixtures shared by all tests."""

import signal

import pytest

from fbnetv3.arch import ARCHS
from fbnetv3.nars.execution.executors import EXECUTORS

# Processes started in the background ignore Ctrl-C, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Undo a test's registrations of architectures and executors, and forget the user modules that it imported."""
    monkeypatch.setattr("fbnetv3.utils.imports._user_modules", [])
    before = {registry: set(registry.names()) for registry in (ARCHS, EXECUTORS)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.remove(name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use a separate download cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FBNETV3_CACHE", str(folder))
    return folder
