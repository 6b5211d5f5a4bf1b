"""Number of cases per test: a few in every test run, many with FBNETV3_HARDENING=25 (`make harden`)."""

import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

SCALE = int(os.environ.get("FBNETV3_HARDENING", "1"))
SEED = int(os.environ.get("FBNETV3_HARDENING_SEED", "0"))


def examples(count):
    """Return hypothesis settings for `count` examples, times SCALE. The default run is deterministic."""
    return settings(
        max_examples=count * SCALE,
        deadline=None,
        derandomize=SCALE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def rng(request):
    """Return a random generator seeded by the name of the test."""
    return np.random.default_rng([SEED, *request.node.name.encode()])


@pytest.fixture(scope="session")
def forkserver():
    """Return a context whose processes have imported everything, so kills do not hit the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.hardening.process_targets"])
    return context
