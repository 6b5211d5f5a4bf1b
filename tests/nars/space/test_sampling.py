"""Pools of candidates, from Table 2's space and from small ones."""

import time

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.feasibility import ConstraintError
from fbnetv3.nars.space.sampling import random_candidates, sample_pool, sample_quasi_random, sample_sobol
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.space.spaces import CONDITIONAL, FBNETV3, SMALL


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def test_a_pool_meets_its_constraints(space):
    constraints = Constraints(space, [Constraint("macs", 400e6, 800e6), Constraint("params", high=12e6)])
    pool = sample_pool(constraints, 3000)
    assert pool.shape == (3000, 37) and len(np.unique(pool, axis=0)) == 3000
    costs = constraints.column_values(pool, "macs", "params", "activations")
    assert costs["macs"].min() >= 400e6 and costs["macs"].max() <= 800e6 and costs["params"].max() <= 12e6
    assert (pool == sample_pool(constraints, 3000)).all()
    assert (pool[:100] == sample_pool(constraints, 100)).all()
    assert not (pool == sample_pool(constraints, 3000, seed=1)).all()


def test_samples_fill_the_space_evenly(space):
    samples = sample_sobol(space, 4096)
    for column, size in enumerate(space.sizes):
        counts = np.bincount(samples[:, column], minlength=size)
        assert counts.min() > 0.9 * 4096 / size and counts.max() < 1.1 * 4096 / size + 1


def test_constraints_that_no_candidate_meets_are_an_error_at_once(space):
    start = time.perf_counter()
    with pytest.raises(
        ConstraintError,
        match=r"no candidate of fbnetv3 was found that meets .*; the nearest one has macs 2\.\d+e\+08",
    ):
        sample_pool(Constraints(space, [Constraint("macs", high=150e6)]))
    assert time.perf_counter() - start < 10
    with pytest.raises(ConstraintError, match=r"the nearest one has macs .*, params"):
        sample_pool(Constraints(space, [Constraint("macs", high=250e6), Constraint("params", low=20e6)]))


def test_a_pool_larger_than_the_space_is_the_space_in_random_order():
    small = space_from_dict(SMALL)
    pools = [sample_pool(Constraints(small), 1000, seed) for seed in (0, 0, 1)]
    assert len(pools[0]) == small.num_candidates() == len(np.unique(pools[0], axis=0))
    assert (pools[0] == pools[1]).all() and not (pools[0] == pools[2]).all()


def test_a_pool_smaller_than_a_small_space():
    small = space_from_dict(SMALL)
    pool = sample_pool(Constraints(small), 5)
    assert len(np.unique(pool, axis=0)) == 5 and (pool == sample_pool(Constraints(small), 1000)[:5]).all()


def test_narrow_constraints(space):
    """A thousandth of the range of MACs, and nearly the minimum of all candidates."""
    least = Constraints(space).column_values(np.zeros((1, len(space)), int), "macs")["macs"][0]
    for low, high in ((600e6, 600.4e6), (0, 1.15 * least)):
        constraints = Constraints(space, [Constraint("macs", low, high)])
        start = time.perf_counter()
        pool = sample_pool(constraints, 200)
        assert time.perf_counter() - start < 10
        assert constraints.feasible(pool).all() and len(np.unique(pool, axis=0)) == 200
        assert (pool == sample_pool(constraints, 200)).all()


@pytest.mark.parametrize("count", [0, -1])
def test_an_empty_pool(space, count):
    with pytest.raises(UsageError, match="must be at least 1"):
        sample_pool(Constraints(space), count)


def test_samples_depend_on_the_seed_and_are_inside_the_space(space):
    first, second, third = (sample_sobol(space, 100, seed) for seed in (0, 0, 1))
    assert (first == second).all() and not (first == third).all()
    assert (space.validate(first) == first).all()


def test_the_first_trials_are_the_beginning_of_the_sobol_sequence(space):
    constraints = Constraints(space, [Constraint("macs", 400e6, 800e6)])
    first = sample_quasi_random(constraints, 50, seed=3)
    sobol = sample_sobol(space, 1024, seed=3)
    assert (first == sobol[constraints.feasible(sobol)][:50]).all()
    assert (first == sample_pool(constraints, 300, seed=3)[:50]).all()
    assert (first[:20] == sample_quasi_random(constraints, 20, seed=3)).all()


def test_quasi_random_candidates_of_a_small_space_are_distinct():
    small = space_from_dict(SMALL)
    samples = sample_quasi_random(Constraints(small), 100)
    assert len(samples) == len(np.unique(samples, axis=0)) == small.num_candidates() == 18


def test_a_pool_of_a_space_with_continuous_variables_and_conditions():
    """Of the optimizers, a third each; those without momentum do not differ in it."""
    space = space_from_dict(CONDITIONAL)
    pool = sample_pool(Constraints(space), 3000)
    assert len(np.unique(pool, axis=0)) == 3000 and (space.canonicalize(pool) == pool).all()
    assert 0.3 < (pool[:, 0] == 0).mean() < 0.37
    assert 0.49 < space.positions(pool)[:, 1].mean() < 0.51
    momentum = space.positions(pool)[space.active(pool)[:, 2], 2]
    assert len(momentum) > 1800 and 0.48 < momentum.mean() < 0.52


def test_a_continuous_space_is_not_listed_for_a_large_pool():
    one = space_from_dict({"name": "one", "variables": {"x": {"range": [0.0, 1.0]}}})
    pool = sample_pool(Constraints(one), 300_000)
    assert len(np.unique(pool)) == 300_000 and (pool == sample_pool(Constraints(one), 300_000)).all()
    assert len(np.unique(pool[:64] // 15_626)) == 64  # one in each of 64 equal parts


def test_a_pool_of_all_candidates_of_a_space_with_conditions():
    when = {"kind": "b"}
    variables = {
        "kind": {"choices": ["a", "b"]},
        **{f"x{i}": {"range": [1, 2], "when": when} for i in range(10)},
    }
    space = space_from_dict({"name": "s", "variables": variables})
    pool = sample_pool(Constraints(space), 5000)
    assert len(pool) == len(np.unique(pool, axis=0)) == 1 + 2**10


def test_narrow_constraints_on_continuous_variables():
    """A millionth of the space: the samples are repaired, not drawn."""
    space = space_from_dict({"name": "s", "variables": {f"x{i}": {"range": [0.0, 1.0]} for i in range(3)}})
    columns = {"sum": lambda candidates: space.positions(candidates).sum(1)}
    constraints = Constraints(space, [Constraint("sum", low=2.98)], columns)
    pool = sample_pool(constraints, 100)
    assert len(np.unique(pool, axis=0)) == 100 and constraints.feasible(pool).all()


def test_random_candidates_are_uniform():
    space = space_from_dict(CONDITIONAL)
    candidates = random_candidates(space, 6000, np.random.default_rng(0))
    assert (space.canonicalize(candidates) == candidates).all()
    assert np.bincount(candidates[:, 4]) == pytest.approx([2000] * 3, rel=0.1)
    assert space.positions(candidates)[:, 5].mean() == pytest.approx(0.5, abs=0.02)
