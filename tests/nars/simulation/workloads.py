"""Inputs shared by the tests of the simulator."""

import numpy as np

from fbnetv3.nars.simulation.simulator import Workload

# Failures and stragglers, frequent enough for searches that take minutes
UNRELIABLE = {"failure_rate": 20.0, "stragglers": 0.4, "startup": 3.0}


def random_workload(rounds=3, round_size=12, full_epochs=10, stopping_epoch=6, seed=0):
    seconds = np.random.default_rng(seed).uniform(5, 15, (rounds, round_size))
    return Workload(tuple(map(tuple, seconds.tolist())), full_epochs, stopping_epoch)
