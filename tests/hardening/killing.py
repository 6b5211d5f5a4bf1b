"""SIGKILL at a random time or during a write."""

import time
from pathlib import Path

TIMEOUT = 120.0


def kill_randomly(process, folder, pattern, rng, seconds):
    """Kill a process at a random time within `seconds`, or while a file matching `pattern` exists.

    Returns:
        Whether it was killed; it may exit before that.
    """
    if rng.random() < 0.5:
        return kill_after(process, rng.uniform(0, seconds))
    return kill_during_write(process, folder, pattern, int(rng.integers(1, 8)))


def kill_after(process, seconds):
    """Kill a process after some seconds, and return whether it was still running."""
    process.join(seconds)
    return _kill(process)


def kill_during_write(process, folder, pattern, occurrence=1):
    """Kill a process while a file that matches `pattern` exists, at its nth occurrence.

    Returns:
        Whether it was killed; it may exit before that.
    """
    deadline = time.monotonic() + TIMEOUT
    existed = False
    while process.is_alive() and time.monotonic() < deadline:
        exists = Path(folder).exists() and any(Path(folder).rglob(pattern))
        occurrence -= exists and not existed
        existed = exists
        if exists and not occurrence:
            return _kill(process)
        time.sleep(0.0005)
    return False


def _kill(process):
    was_alive = process.is_alive()
    if was_alive:
        process.kill()
    process.join(TIMEOUT)
    assert process.exitcode is not None
    return was_alive and process.exitcode < 0


def wait_for_exit(process):
    """Wait until a process exits on its own, and return its exit code."""
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the process did not end within {TIMEOUT} s")
    return process.exitcode
