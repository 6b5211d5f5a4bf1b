"""Two sides measured in the same run, by turns, so that whatever else the machine does hits both."""

from __future__ import annotations

import statistics
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


def report(name: str, found: dict[str, float]) -> None:
    """One line for a comparison."""
    sides = ", ".join(
        f"{side} {1e3 * found[side]:.1f} ms (spread {found[side + '_spread']:.0%})" for side in ("ours", "theirs")
    )
    print(f"{name}: {sides}; ours is {found['ratio']:.2f} x as fast", flush=True)
