"""Two sides measured in the same run, by turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = "FBNETV3_BENCHMARK_RESULTS"
"""Environment variable: a file to which each comparison is added as a line of JSON."""


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeat: int = 1, pause: float = 0.0
) -> dict[str, float]:
    """Median seconds a call of each side, and how many times faster ours is.

    Args:
        ours, theirs: what to measure; each has a turn before, to warm up.
        rounds: how often each side has its turn.
        repeat: calls a turn.
        pause: seconds before a turn, for the other side's threads to go to sleep.
    """
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        for side, call in (("ours", ours), ("theirs", theirs)):
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            if turn:
                seconds[side].append((time.perf_counter() - start) / repeat)
    return summary(seconds)


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians and spreads of the seconds of "ours" and "theirs", and how many times faster ours is."""
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
    """Call, and answer with a line, for each line that comes in."""
    for _ in sys.stdin:
        answer = str(call())
        assert "\n" not in answer, "an answer is one line"
        print(answer, flush=True)


def report(name: str, found: dict[str, float], goal: float | None = None, peer: str = "theirs") -> None:
    """One line for a comparison; `benchmarks/run.py` has it as a row of its table.

    Args:
        name: what is compared.
        found: what `compare` gives.
        goal: how many times faster ours is meant to be.
        peer: what theirs is.
    """
    sides = ", ".join(
        f"{side} {1e3 * found[side]:.1f} ms (spread {found[side + '_spread']:.0%})" for side in ("ours", "theirs")
    )
    wanted = f" (goal: {goal:g})" if goal else ""
    print(f"{name}: {sides}; ours is {found['ratio']:.2f} x as fast{wanted}", flush=True)
    _record({"name": name, "peer": peer, "goal": goal, **found})


def fact(name: str, value: float, goal: float | None = None, about: str = "") -> None:
    """One line for a figure that is no comparison, which `benchmarks/run.py` takes up too.

    Args:
        name: what it is.
        value: the figure.
        goal: what it is meant to be at least.
        about: more of it, for people.
    """
    wanted = f" (goal: {goal:g})" if goal else ""
    print(f"{name}: {value:.3g}{wanted}" + (f"; {about}" if about else ""), flush=True)
    _record({"name": name, "value": value, "goal": goal, "about": about})


def _record(row: Mapping[str, object]) -> None:
    if file := os.environ.get(RESULTS):
        with Path(file).open("a") as f:
            f.write(json.dumps(row) + "\n")
