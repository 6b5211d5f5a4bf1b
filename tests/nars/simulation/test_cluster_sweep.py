"""Simulations on clusters of several sizes, and their figure."""

import pytest

from fbnetv3.errors import OutputError
from fbnetv3.nars.simulation.cluster_sweep import fastest_gpus_per_trial, plot_sweep, simulate_seeds
from fbnetv3.nars.simulation.simulator import Cluster, Workload
from tests.nars.simulation.workloads import UNRELIABLE, random_workload


def test_large_clusters_use_several_gpus_per_trial():
    """One GPU per trial is best while it keeps all GPUs busy; beyond that, trials share them."""
    workload = Workload(((10.0,) * 12,) * 2, 4, 3)
    assert fastest_gpus_per_trial(workload, Cluster(6, scaling=0.9)) == 1
    assert fastest_gpus_per_trial(workload, Cluster(48, scaling=0.9)) == 4


def test_only_unreliable_clusters_are_simulated_with_every_seed():
    reliable = simulate_seeds(random_workload(), Cluster(4), seeds=range(5))
    assert len(reliable.wall_seconds) == 1 and reliable.failures == reliable.stopped == 0
    unreliable = simulate_seeds(
        random_workload(), Cluster(4, **UNRELIABLE), retries=0, max_failures=0, seeds=range(5)
    )
    assert len(unreliable.wall_seconds) == 5 and unreliable.failures > 0 and unreliable.stopped == 1
    assert unreliable.lost_trials == unreliable.failures


def test_the_figure(tmp_path):
    points = [
        simulate_seeds(random_workload(), Cluster(gpus), asynchronous=asynchronous)
        for gpus in (2, 4)
        for asynchronous in (False, True)
    ]
    plot_sweep(points, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_sweep(points, tmp_path / "none" / "scaling.png")
