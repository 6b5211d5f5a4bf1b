"""SIGKILL, at a random moment or in the middle of a write."""

import time
from pathlib import Path

PATIENCE = 120.0


def kill(process, folder, pattern, chance, within):
    """Kill a process at a random moment of so many seconds, or while a file of that name is there. Returns whether it
    was killed: it may end before."""
    if chance.random() < 0.5:
        return kill_at(process, chance.uniform(0, within))
    return kill_while(process, folder, pattern, chance)


def kill_at(process, seconds):
    """Kill a process after so long, if it has not ended by then. Returns whether it was killed."""
    process.join(seconds)
    return _kill(process)


def kill_while(process, folder, pattern, chance):
    """Kill a process while a file of that name is there, not always the first one. Returns whether it was killed.

    Where it ends before, it is not killed.
    """
    wanted, until, there = int(chance.integers(1, 8)), time.monotonic() + PATIENCE, False
    while process.is_alive() and time.monotonic() < until:
        now = any(Path(folder).rglob(pattern)) if Path(folder).exists() else False
        wanted -= now and not there
        there = now
        if there and not wanted:
            return _kill(process)
        time.sleep(0.0005)
    return False


def _kill(process):
    alive = process.is_alive()
    if alive:
        process.kill()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return alive and process.exitcode < 0


def ended(process):
    """Wait for a process's own end. Returns its exit code."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        raise AssertionError("it hangs")
    return process.exitcode
