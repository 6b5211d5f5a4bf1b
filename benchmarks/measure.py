"""Two sides measured in the same run, by turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeat: int = 1) -> dict[str, float]:
    """Median seconds a call of each side, and how many times faster ours is.

    Args:
        ours, theirs: what to measure; each is called once before, to warm up.
        rounds: how often each side has its turn.
        repeat: calls a turn.
    """
    ours(), theirs()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, call in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[side].append((time.perf_counter() - start) / repeat)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    spread = {f"{side}_spread": (max(times) - min(times)) / medians[side] for side, times in seconds.items()}
    return {**medians, **spread, "ratio": medians["theirs"] / medians["ours"]}


class Side:
    """A side in a process of its own, as it would be in use: a script that answers each call with `serve`.

    Args:
        arguments: of the script that is running, which tell it to serve.
    """

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, sys.argv[0], *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __call__(self) -> str:
        """What the side's call gives, as text."""
        self.process.stdin.write("go\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("error: a side ended early; its message stands above")
        return answer.strip()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(call: Callable[[], object]) -> None:
    """Call and answer, for each line that comes in."""
    for _ in sys.stdin:
        print(call(), flush=True)


def report(name: str, found: dict[str, float]) -> None:
    """One line for a comparison."""
    sides = ", ".join(
        f"{side} {1e3 * found[side]:.1f} ms (spread {found[side + '_spread']:.0%})" for side in ("ours", "theirs")
    )
    print(f"{name}: {sides}; ours is {found['ratio']:.2f} x as fast", flush=True)
