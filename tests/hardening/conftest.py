"""How much is tried: a few cases of each kind in every run of the tests, many with
FBNETV3_HARDENING=25 (make harden)."""

import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

THOROUGH = int(os.environ.get("FBNETV3_HARDENING", "1"))
SEED = int(os.environ.get("FBNETV3_HARDENING_SEED", "0"))


def examples(count):
    """Settings of hypothesis for so many cases in the short form. What it finds is found again in the next run."""
    return settings(
        max_examples=count * THOROUGH,
        deadline=None,
        derandomize=THOROUGH == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def chance(request):
    """Random numbers, the same in each run of a test."""
    return np.random.default_rng([SEED, *request.node.name.encode()])


@pytest.fixture(scope="session")
def nursery():
    """Starts processes that have imported everything already, so that a kill does not fall into the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.hardening.victims"])
    return context
