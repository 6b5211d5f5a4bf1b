"""How a search scales: simulations of it on clusters of several sizes, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.nars.simulation.simulator import simulate
from fbnetv3.nars.simulation.workload import Cluster, Simulated, Workload

# GPUs that may train a candidate together where the best number is looked for: as far as the speed-up was measured.
_MOST_PER_TRIAL = 8


@dataclass(frozen=True)
class Scaled:
    """Simulations of a search on one cluster, with as many seeds.

    Attributes:
        cluster: where.
        asynchronous: whether without the wait at the end of each round.
        wall: seconds of each, (N,).
        gpu_seconds: of work of each, (N,).
        utilisation: share of the cluster's time that is work, mean.
        failures: failed attempts, mean.
        lost: trials without an accuracy, mean.
        stopped: share of the simulations in which more trials were lost than the search survives.
        known: results that a proposal after the first round was based on, mean.
    """

    cluster: Cluster
    asynchronous: bool
    wall: np.ndarray
    gpu_seconds: np.ndarray
    utilisation: float
    failures: float
    lost: float
    stopped: float
    known: float


def scale(
    load: Workload,
    cluster: Cluster,
    *,
    asynchronous: bool = False,
    in_flight: int | None = None,
    retries: int = 1,
    max_failures: int = 10,
    learning: float = 0.0,
    seeds: Sequence[int] = (0,),
) -> Scaled:
    """Simulate a search with several seeds. Where nothing is left to chance, one of them is enough, and is taken.

    Args:
        load, cluster, asynchronous, in_flight, retries, learning: see `simulate`.
        max_failures: lost trials that the search survives. A simulation with more goes on; a search would wait for
            somebody to resume it.
        seeds: of the simulations.

    Raises:
        UsageError: numbers that make no sense.
    """
    if not len(seeds):
        raise UsageError("seeds: at least one simulation is needed")
    chance = cluster.failure_rate or cluster.stragglers
    run = partial(
        simulate, load, cluster, asynchronous=asynchronous, in_flight=in_flight, retries=retries, learning=learning
    )
    done = [run(seed=seed) for seed in (seeds if chance else seeds[:1])]
    return Scaled(
        cluster,
        asynchronous,
        np.array([one.wall for one in done]),
        np.array([one.gpu_seconds for one in done]),
        _mean(done, "utilisation"),
        _mean(done, "failures"),
        _mean(done, "lost"),
        float(np.mean([one.lost > max_failures for one in done])),
        _mean(done, "known_later"),
    )


def _mean(done: Sequence[Simulated], name: str) -> float:
    return float(np.mean([getattr(one, name) for one in done]))


def fastest_split(load: Workload, cluster: Cluster, learning: float = 0.0) -> int:
    """How many GPUs should train a candidate together for the search to end first: 1, 2, 4 or 8.

    Without failures and stragglers, in rounds; of equally fast numbers the least.
    """
    calm = replace(cluster, failure_rate=0.0, stragglers=0.0)
    counts = [2**i for i in range(20) if 2**i <= min(cluster.gpus, _MOST_PER_TRIAL)]
    return min(counts, key=lambda count: simulate(load, replace(calm, gpus_per_trial=count), learning=learning).wall)


def draw(rows: Sequence[Scaled], file: Path) -> None:
    """Draw wall time and utilisation against GPUs, a line for rounds and one for the search without them.

    Args:
        rows: of clusters of several sizes.
        file: PNG to write.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=130, layout="constrained")
    time, used = figure.subplots(1, 2)
    for asynchronous, colour, name in ((False, "#1f5fa8", "rounds"), (True, "#d9731a", "asynchronous")):
        here = [row for row in rows if row.asynchronous == asynchronous]
        if not here:
            continue
        gpus = [row.cluster.gpus for row in here]
        days = [row.wall.mean() / 86400 for row in here]
        low, high = ([bound(row.wall) / 86400 for row in here] for bound in (np.min, np.max))
        time.plot(gpus, days, "o-", color=colour, label=name)
        time.fill_between(gpus, low, high, color=colour, alpha=0.2, lw=0)
        used.plot(gpus, [100 * row.utilisation for row in here], "o-", color=colour, label=name)
    gpus = sorted({row.cluster.gpus for row in rows})
    least = min(row.gpu_seconds.mean() for row in rows) / 86400
    time.plot(gpus, [least / count for count in gpus], ":", color="0.4", label="least GPU hours, all GPUs busy")
    time.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="wall time, days")
    used.set(xscale="log", ylim=(0, 103), xlabel="GPUs", ylabel="utilisation, %")
    for axes in (time, used):
        axes.set_xticks(gpus, [str(count) for count in gpus])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    ticks = [days for days in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if min(r.wall.min() for r in rows) / 2e5 < days]
    time.set_yticks(ticks, [f"{days:g}" for days in ticks])
    time.legend(frameon=False)
    used.margins(x=0.09)
    for row in rows:
        used.text(row.cluster.gpus, 3, f"{row.cluster.gpus_per_trial} a trial", ha="center", size=7)
    try:
        figure.savefig(file)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}): choose another file") from None
