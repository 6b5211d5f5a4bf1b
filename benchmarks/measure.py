"""Compare two implementations in alternating turns, so that background load affects both alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fbnetv3.deploy.latency.timing import read_clock

RESULTS_VARIABLE = "FBNETV3_BENCHMARK_RESULTS"
"""Environment variable with a file to which each result is appended as a line of JSON."""


def compare(
    fbnetv3: Callable[[], object],
    peer: Callable[[], object],
    rounds: int,
    repeat: int = 1,
    pause: float = 0.0,
) -> dict[str, float]:
    """Measure the seconds per call of both sides. See `summarize` for the result.

    Args:
        fbnetv3: the side of this project, whose calls have no work left on a GPU when they return.
        peer: the side to compare with, likewise.
        rounds: measured turns of each side; one more turn warms up.
        repeat: calls per turn.
        pause: seconds before a turn, so that the other side's threads go to sleep.
    """
    seconds: dict[str, list[float]] = {"fbnetv3": [], "peer": []}
    for turn in range(rounds + 1):
        for side, call in (("fbnetv3", fbnetv3), ("peer", peer)):
            time.sleep(pause)
            start = time.perf_counter()
            if isinstance(call, SideProcess):
                call(repeat)
            else:
                for _ in range(repeat):
                    call()
            if turn:
                seconds[side].append((time.perf_counter() - start) / repeat)
    return summarize(seconds)


def summarize(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Summarize the seconds of "fbnetv3" and "peer".

    Returns:
        The median of each side; "fbnetv3_spread" and "peer_spread", the range over the median; and "ratio", the median
        of the peer over that of fbnetv3.
    """
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    spreads = {
        f"{side}_spread": (max(times) - min(times)) / medians[side] for side, times in seconds.items()
    }
    return {**medians, **spreads, "ratio": medians["peer"] / medians["fbnetv3"]}


class SideProcess:
    """One side in its own process, as in real use: the running script, which answers calls with `serve_calls`.

    Args:
        arguments: arguments of the script that make it serve.
    """

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, sys.argv[0], *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, repeat: int = 1) -> str:
        """Call the side's function, `repeat` times, and return its last result as text."""
        self.process.stdin.write(f"{repeat}\n")
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: the process of one side ended early; see its message above")
        return line.strip()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve_calls(function: Callable[[], object], device: str = "cpu") -> None:
    """Call a function as often as each line on standard input says, and print its last result on one line.

    The line is printed when `device` has finished its work, so that the other process may stop its clock.
    """
    for count in sys.stdin:
        for _ in range(int(count)):
            line = str(function())
        assert "\n" not in line, "results must fit on one line"
        read_clock(device)
        print(line, flush=True)


def report_comparison(
    name: str, result: dict[str, float], goal: float | None = None, peer_name: str = "peer"
) -> None:
    """Print a comparison, and record it for `benchmarks/run.py`.

    Args:
        name: name of the comparison.
        result: result of `compare` or `summarize`.
        goal: the ratio to reach.
        peer_name: name of the peer.
    """
    sides = ", ".join(
        f"{label} {1e3 * result[side]:.1f} ms (spread {result[f'{side}_spread']:.0%})"
        for side, label in (("fbnetv3", "fbnetv3"), ("peer", peer_name))
    )
    print(f"{name}: {sides}; ratio {result['ratio']:.2f}{_format_goal(goal)}", flush=True)
    _record({"name": name, "peer_name": peer_name, "goal": goal, **result})


def report_value(
    name: str,
    value: float,
    goal: float | None = None,
    details: str = "",
    *,
    lower_is_better: bool = False,
) -> None:
    """Print a single value, and record it for `benchmarks/run.py`.

    Args:
        name: name of the value.
        value: the value.
        goal: the minimum to reach, or the maximum if `lower_is_better`.
        details: additional text.
        lower_is_better: whether the value should be at most `goal`.
    """
    bound = "at most " if lower_is_better else ""
    details_text = f"; {details}" if details else ""
    print(f"{name}: {value:.3g}{_format_goal(goal, bound)}{details_text}", flush=True)
    row = {"name": name, "value": value, "goal": goal, "details": details}
    _record({**row, "lower_is_better": True} if lower_is_better else row)


def _format_goal(goal: float | None, bound: str = "") -> str:
    return f" (goal: {bound}{goal:.3g})" if goal else ""


def _record(row: Mapping[str, object]) -> None:
    if file := os.environ.get(RESULTS_VARIABLE):
        with Path(file).open("a") as f:
            f.write(json.dumps(row) + "\n")
