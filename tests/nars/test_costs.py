"""The cost of many candidates equals the cost of each; constraints and pools."""

import time

import numpy as np
import pytest

from fbnetv3.arch import ArchError, cost_of
from fbnetv3.nars.space.constraints import Constraint, ConstraintError, Constraints
from fbnetv3.nars.space.cost_model import COLUMNS, CostModel
from fbnetv3.nars.space.sampling import sample_pool, sobol
from fbnetv3.nars.space.search_space import SpaceError, load_space, space_from_dict
from tests.nars.test_space import FBNETV3, SMALL


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def candidates_of(space, count, seed=0):
    return np.random.default_rng(seed).integers(0, space.sizes, (count, len(space)))


def assert_equal_to_each(space, candidates, **arguments):
    found = CostModel(space, **arguments)(candidates)
    for index, candidate in enumerate(candidates):
        try:
            cost = cost_of(space.arch(candidate, "x"), **arguments)
            expected = tuple(getattr(cost, column) for column in COLUMNS)
        except ArchError:
            expected = (-1, -1, -1)
        assert tuple(found[column][index] for column in COLUMNS) == expected, space.decode(candidate)
    return found


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 10, "in_chans": 1}, {"num_classes": 0}])
def test_equal_to_the_cost_of_each_on_table_2(space, arguments):
    candidates = [np.zeros((1, 37), int), space.sizes[None] - 1, candidates_of(space, 150)]
    assert_equal_to_each(space, np.concatenate(candidates), **arguments)


ODD = {
    "name": "odd",
    "variables": {
        "res": {"range": [1, 40, 3]},
        "c0": {"choices": [8, 16]},
        "c1": {"range": [4, 12, 4]},
        "n": {"range": [1, 3]},
        "e": {"choices": [1, 2.5, 6]},
        "k": {"choices": [3, 4, 5]},
        "pad": {"choices": [0, 1]},
        "se": {"choices": ["none", "hsigmoid"]},
        "group": {"choices": [1, 8, 24]},
        "stride": {"choices": [1, 2]},
    },
    "architecture": {
        "resolution": "$res",
        "stages": [
            {"rows": [{"block": "conv", "kernel": "$k", "channels": "$c0", "stride": "$stride"}]},
            {
                "rows": [
                    {"block": "mbconv", "kernel": 3, "expansion": "$e", "channels": "$c1", "repeat": "$n", "stride": 2}
                ]
            },
            {
                "rows": [
                    {
                        "block": "mbconv",
                        "kernel": 5,
                        "expansion": ["$e", 2],
                        "channels": 16,
                        "repeat": "$n",
                        "se": "$se",
                    }
                ]
            },
            {
                "rows": [
                    {"block": "mbconv", "kernel": 3, "expansion": 2, "channels": 8, "stride": 2, "dw_padding": "$pad"}
                ]
            },
            {"rows": [{"block": "mbconv", "kernel": 3, "expansion": 3, "channels": 24, "dw_group_width": "$group"}]},
            {"rows": [{"block": "mbpool", "expansion": "$e", "channels": 32}]},
        ],
    },
}


def test_equal_on_a_space_with_every_kind_of_variable_and_with_invalid_candidates():
    space = space_from_dict(ODD)
    found = assert_equal_to_each(space, candidates_of(space, 600))
    assert 0.1 < (found["macs"] > 0).mean() < 0.9


def test_a_table_too_large_for_memory_gives_the_same(space, monkeypatch):
    candidates = candidates_of(space, 50)
    expected = CostModel(space)(candidates)
    monkeypatch.setattr("fbnetv3.nars.space.block_sums._MOST_PLACES", 10)
    found = CostModel(space)(candidates)
    assert all((found[column] == expected[column]).all() for column in COLUMNS)


def test_it_is_fast(space):
    """At least 100,000 candidates a second even on one busy core; benchmarks/search_space.py has the real figure."""
    model, candidates = CostModel(space), candidates_of(space, 20_000)
    model(candidates)
    start = time.perf_counter()
    model(candidates)
    assert len(candidates) / (time.perf_counter() - start) > 100_000


def test_a_space_without_networks():
    with pytest.raises(SpaceError, match="architecture: the space has no template"):
        CostModel(space_from_dict(SMALL))


def test_a_pool_meets_its_constraints(space):
    constraints = Constraints(space, [Constraint("macs", 400e6, 800e6), Constraint("params", high=12e6)])
    pool = sample_pool(constraints, 3000)
    assert pool.shape == (3000, 37) and len(np.unique(pool, axis=0)) == 3000
    values = constraints.values(pool, "macs", "params", "activations")
    assert values["macs"].min() >= 400e6 and values["macs"].max() <= 800e6 and values["params"].max() <= 12e6
    assert (pool == sample_pool(constraints, 3000)).all()
    assert (pool[:100] == sample_pool(constraints, 100)).all()
    assert not (pool == sample_pool(constraints, 3000, seed=1)).all()


def test_samples_fill_the_space_evenly(space):
    samples = sobol(space, 4096)
    for column, size in enumerate(space.sizes):
        counts = np.bincount(samples[:, column], minlength=size)
        assert counts.min() > 0.9 * 4096 / size and counts.max() < 1.1 * 4096 / size + 1


def test_what_nothing_can_meet_is_said_at_once(space):
    start = time.perf_counter()
    with pytest.raises(
        ConstraintError, match=r"no candidate of fbnetv3 meets .*; the nearest found has macs 2\.\d+e\+08"
    ):
        sample_pool(Constraints(space, [Constraint("macs", high=150e6)]))
    assert time.perf_counter() - start < 10
    with pytest.raises(ConstraintError, match=r"the nearest found has macs .*, params"):
        sample_pool(Constraints(space, [Constraint("macs", high=250e6), Constraint("params", low=20e6)]))


def test_columns_of_ones_own():
    space = space_from_dict(SMALL)
    constraints = Constraints(space, [Constraint("sum", 2, 3)], {"sum": lambda c: c.sum(1)})
    pool = sample_pool(constraints, 100)
    assert sorted(map(tuple, pool)) == sorted(
        (w, k, 0, r) for w in range(3) for k in range(2) for r in range(3) if 2 <= w + k + r <= 3
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda c: c, r"column mine: its function gives int64 \(1, 4\)"),
        (lambda c: np.full(len(c), np.nan), "column mine: is not a number for 1 candidates"),
        (lambda c: np.array(["x"] * len(c)), "column mine: its function gives <U1"),
    ],
)
def test_a_column_that_gives_something_else(function, message):
    constraints = Constraints(space_from_dict(SMALL), [Constraint("mine", 0, 1)], {"mine": function})
    with pytest.raises(ConstraintError, match=message):
        constraints.met(np.zeros((1, 4), int))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda space: Constraint("macs", 2, 1), "constraint on macs: nothing lies between 2 and 1"),
        (lambda space: Constraint("macs", float("nan")), "constraint on macs: nan is not a number"),
        (lambda space: Constraints(space, [Constraint("mac")]), "nobody computes the column mac: did you mean macs"),
    ],
)
def test_constraints_that_make_no_sense(space, make, message):
    with pytest.raises(ConstraintError, match=message):
        make(space)


def test_no_candidates_cost_nothing(space):
    none = np.zeros((0, len(space)), int)
    assert {len(values) for values in CostModel(space)(none).values()} == {0}
    assert CostModel(space).per_stage(none)["macs"].shape[0] == 0
    assert Constraints(space, [Constraint("macs", high=1e9)]).met(none).shape == (0,)


@pytest.mark.parametrize("channels", [2**63, 2**70])
def test_channels_without_end_are_refused(channels):
    rows = [
        {"block": "conv", "kernel": "$k", "channels": 8, "stride": 2},
        {"block": "mbpool", "expansion": 2, "channels": channels},
    ]
    data = {"resolution": 32, "stages": [{"rows": rows}]}
    with pytest.raises(SpaceError):
        space_from_dict({"name": "s", "variables": {"k": {"choices": [3, 5]}}, "architecture": data})
