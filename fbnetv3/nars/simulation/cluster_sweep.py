"""Simulate a search on clusters of several sizes, and plot wall time and utilization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.nars.simulation.simulator import Cluster, Workload, simulate
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes

# Choices of `fastest_gpus_per_trial`; speedups were not measured beyond them
_GPUS_PER_TRIAL = (1, 2, 4, 8)
_DAY = 86400


@dataclass(frozen=True)
class SweepPoint:
    """Results of N simulations on one cluster, each with its own seed: times of each, and means of everything else."""

    cluster: Cluster
    asynchronous: bool
    wall_seconds: np.ndarray  # (N,)
    gpu_seconds: np.ndarray  # (N,)
    utilization: float
    failures: float
    lost_trials: float
    stopped: float  # fraction in which the search would have stopped because of lost trials
    results_at_proposal: float  # number of results behind a proposal after the first round


def simulate_seeds(
    workload: Workload,
    cluster: Cluster,
    *,
    seeds: Sequence[int] = (0,),
    max_failures: int = 10,
    **options: Any,
) -> SweepPoint:
    """Simulate a search with several seeds; with one if neither failures nor stragglers make a difference.

    A simulation with more lost trials than `max_failures` continues, while a search would stop. `options` are
    additional arguments of `simulate`.
    """
    if not cluster.failure_rate and not cluster.stragglers:
        seeds = seeds[:1]
    results = [simulate(workload, cluster, seed=seed, **options) for seed in seeds]

    def mean(attribute: str) -> float:
        return float(np.mean([getattr(result, attribute) for result in results]))

    return SweepPoint(
        cluster,
        options.get("asynchronous", False),
        wall_seconds=np.array([result.wall_seconds for result in results]),
        gpu_seconds=np.array([result.gpu_seconds for result in results]),
        utilization=mean("utilization"),
        failures=mean("failures"),
        lost_trials=mean("lost_trials"),
        stopped=float(np.mean([result.lost_trials > max_failures for result in results])),
        results_at_proposal=mean("mean_results_at_proposal"),
    )


def fastest_gpus_per_trial(workload: Workload, cluster: Cluster, predictor_seconds: float = 0.0) -> int:
    """Return the number of GPUs per trial (1, 2, 4 or 8) with which a search in rounds finishes first.

    Failures and stragglers are ignored. Ties go to the smallest number.
    """

    def wall_seconds(gpus_per_trial: int) -> float:
        reliable = replace(cluster, gpus_per_trial=gpus_per_trial, failure_rate=0.0, stragglers=0.0)
        return simulate(workload, reliable, predictor_seconds=predictor_seconds).wall_seconds

    choices = [count for count in _GPUS_PER_TRIAL if count <= cluster.gpus]
    return min(choices, key=wall_seconds)


def plot_sweep(points: Sequence[SweepPoint], file: Path) -> None:
    """Plot wall time and utilization over the number of GPUs, with lines for rounds and for asynchronous search."""
    figure = new_figure(10, 3.8, dpi=130)
    time_axes, utilization_axes = figure.subplots(1, 2)
    for asynchronous, color, label in ((False, "#1f5fa8", "rounds"), (True, "#d9731a", "asynchronous")):
        line = [point for point in points if point.asynchronous == asynchronous]
        if not line:
            continue
        gpus = [point.cluster.gpus for point in line]
        days = [point.wall_seconds / _DAY for point in line]
        time_axes.plot(gpus, [values.mean() for values in days], "o-", color=color, label=label)
        # The band spans all seeds
        lows = [values.min() for values in days]
        highs = [values.max() for values in days]
        time_axes.fill_between(gpus, lows, highs, color=color, alpha=0.2, lw=0)
        utilization = [100 * point.utilization for point in line]
        utilization_axes.plot(gpus, utilization, "o-", color=color, label=label)

    # Lower bound: the least work, spread over all GPUs
    gpus = sorted({point.cluster.gpus for point in points})
    least_days = min(point.gpu_seconds.mean() for point in points) / _DAY
    bound = [least_days / count for count in gpus]
    time_axes.plot(gpus, bound, ":", color="0.4", label="minimum GPU hours, all GPUs busy")
    time_axes.legend(frameon=False)
    for point in points:
        label = f"{point.cluster.gpus_per_trial} per trial"
        utilization_axes.text(point.cluster.gpus, 3, label, ha="center", size=7)

    style_axes(time_axes, xscale="log", yscale="log", xlabel="GPUs", ylabel="wall time, days")
    style_axes(utilization_axes, xscale="log", ylim=(0, 103), xlabel="GPUs", ylabel="utilization, %")
    utilization_axes.margins(x=0.09)
    for axes in (time_axes, utilization_axes):
        axes.set_xticks(gpus, [str(count) for count in gpus])
        axes.minorticks_off()
    # Round numbers of days that are within the plot
    shortest_days = min(point.wall_seconds.min() for point in points) / _DAY
    ticks = [days for days in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if days > shortest_days / 2]
    time_axes.set_yticks(ticks, [f"{days:g}" for days in ticks])
    save_figure(figure, file)
