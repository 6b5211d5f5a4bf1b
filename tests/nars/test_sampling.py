"""Pools of small spaces, of narrow constraints, and what cannot be a pool; see test_costs.py for Table 2's."""

import time

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import sample_pool, sobol
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.test_space import FBNETV3, SMALL


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def test_a_pool_that_is_larger_than_the_space_is_the_space_in_random_order():
    small = space_from_dict(SMALL)
    pools = [sample_pool(Constraints(small), 1000, seed) for seed in (0, 0, 1)]
    assert len(pools[0]) == small.size() == len(np.unique(pools[0], axis=0))
    assert (pools[0] == pools[1]).all() and not (pools[0] == pools[2]).all()


def test_a_part_of_a_small_space():
    small = space_from_dict(SMALL)
    pool = sample_pool(Constraints(small), 5)
    assert len(np.unique(pool, axis=0)) == 5 and (pool == sample_pool(Constraints(small), 1000)[:5]).all()


def test_few_candidates_of_a_large_space_meet_narrow_constraints(space):
    """A thousandth of the range of MACs, and nearly the least that the space can be."""
    least = Constraints(space).values(np.zeros((1, len(space)), int), "macs")["macs"][0]
    for low, high in ((600e6, 600.4e6), (0, 1.15 * least)):
        constraints = Constraints(space, [Constraint("macs", low, high)])
        start = time.perf_counter()
        pool = sample_pool(constraints, 200)
        assert time.perf_counter() - start < 10
        assert constraints.met(pool).all() and len(np.unique(pool, axis=0)) == 200
        assert (pool == sample_pool(constraints, 200)).all()


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_of_nothing(space, count):
    with pytest.raises(UsageError, match="at least 1 is wanted"):
        sample_pool(Constraints(space), count)


def test_samples_are_equal_for_equal_seeds_and_inside_the_space(space):
    first, second, third = (sobol(space, 100, seed) for seed in (0, 0, 1))
    assert (first == second).all() and not (first == third).all()
    assert (space.check(first) == first).all()
