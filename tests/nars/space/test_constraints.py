"""Constraints: users' columns and functions, invalid bounds, empty arrays."""

import numpy as np
import pytest

from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.feasibility import ConstraintError
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.space.spaces import CONDITIONAL, FBNETV3, SMALL, random_candidates


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def test_a_users_column():
    space = space_from_dict(SMALL)
    constraints = Constraints(space, [Constraint("sum", 2, 3)], {"sum": lambda c: c.sum(1)})
    pool = sample_pool(constraints, 100)
    assert sorted(map(tuple, pool)) == sorted(
        (w, k, 0, r) for w in range(3) for k in range(2) for r in range(3) if 2 <= w + k + r <= 3
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda c: c,
            r"column mine: its function must return a number for each candidate, not int64 \(1, 4\)",
        ),
        (
            lambda c: np.full(len(c), np.nan),
            "column mine: its function must return a number for each candidate, not NaN",
        ),
        (
            lambda c: np.array(["x"] * len(c)),
            "column mine: its function must return a number for each candidate, not <U1",
        ),
    ],
)
def test_a_column_that_returns_something_else(function, message):
    constraints = Constraints(space_from_dict(SMALL), [Constraint("mine", 0, 1)], {"mine": function})
    with pytest.raises(ConstraintError, match=message):
        constraints.feasible(np.zeros((1, 4), int))


def test_a_column_that_fails_is_named():
    def mine(candidates):
        return {}["missing"]

    constraints = Constraints(space_from_dict(SMALL), [Constraint("mine", 0, 1)], {"mine": mine})
    with pytest.raises(ConstraintError, match="column mine: its function failed with KeyError: 'missing'"):
        constraints.feasible(np.zeros((1, 4), int))


def test_columns_that_vary_are_found():
    calls = []

    def noisy(candidates):
        calls.append(0)
        return candidates[:, 0] + (candidates[:, 0] == 2) * 0.25 * len(calls)

    columns = {"noisy": noisy, "stable": lambda c: c.sum(1), "endless": lambda c: np.full(len(c), np.inf)}
    constraints = Constraints(space_from_dict(SMALL), (), columns)
    candidates = np.array([[0, 0, 0, 0], [2, 1, 0, 0]])
    assert constraints.varying_columns(candidates) == {"noisy": (2.25, 2.5)}


def test_broken_bounds_are_described():
    bounds = [Constraint("ms", 1, 2), Constraint("kb", high=5), Constraint("ms", low=3)]
    columns = {"ms": lambda c: c.sum(1), "kb": lambda c: c.sum(1)}
    constraints = Constraints(space_from_dict(SMALL), bounds, columns)
    assert constraints.find_broken({"ms": 2.25, "kb": 5}) == ("1 <= ms <= 2 (2.25)", "3 <= ms (2.25)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda space: Constraint("macs", 2, 1),
            "constraint on macs: the lower bound 2 must be at most the upper bound 1",
        ),
        (lambda space: Constraint("macs", float("nan")), "constraint on macs: the lower bound nan must be"),
        (lambda space: Constraints(space, [Constraint("mac")]), "unknown column mac: did you mean macs"),
    ],
)
def test_invalid_constraints(space, make, message):
    with pytest.raises(ConstraintError, match=message):
        make(space)


def test_no_candidates(space):
    none = np.zeros((0, len(space)), int)
    assert Constraints(space, [Constraint("macs", high=1e9)]).feasible(none).shape == (0,)


def test_violation_is_relative_to_the_bound():
    space = space_from_dict(SMALL)
    constraints = Constraints(space, [Constraint("sum", 4, 5)], {"sum": lambda c: c.sum(1)})
    candidates = np.array([[0, 0, 0, 0], [2, 1, 0, 1], [2, 1, 0, 2]])
    assert constraints.violation(candidates).tolist() == [1, 0, 0]
    assert constraints.feasible(candidates).tolist() == [False, True, True]


def test_a_space_without_valid_networks_says_why():
    """Conv blocks have no expansion."""
    row = {"block": "conv", "kernel": 3, "channels": 8, "expansion": 2}
    template = {"resolution": 32, "stages": [{"rows": [row]}]}
    space = space_from_dict({**SMALL, "architecture": template})
    with pytest.raises(
        ConstraintError,
        match="valid network: correct the space; for the nearest one, .*expansion: 2 has no effect",
    ):
        Constraints(space).find_feasible()


DEPTHS = {
    "name": "depths",
    "variables": {
        "min_depth": {"range": [1, 5]},
        "max_depth": {"range": [1, 5]},
        "kind": {"choices": ["a", "b"]},
        "fast": {"choices": [False, True]},
        "share": {"range": [0.0, 1.0], "when": {"kind": "b"}},
        "note": {"choices": ["x", "y"], "when": {"kind": "b"}},
    },
}


def ordered_depths(values):
    return values["min_depth"] <= values["max_depth"]


def not_vectorized(values):
    if values["kind"] == "a":
        return values["min_depth"] in (1, 2)
    return values["share"] > 0.5 and "note" in values


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (ordered_depths, lambda v: v["min_depth"] <= v["max_depth"]),
        (not_vectorized, not_vectorized),
        (lambda v: ~v["fast"] | (v["kind"] == "b"), lambda v: not v["fast"] or v["kind"] == "b"),
        (lambda v: v["share"] > 0.5, lambda v: v.get("share", 0) > 0.5),
        (lambda v: np.isnan(v["share"]) | (v["note"] == "x"), lambda v: v.get("note") in (None, "x")),
        (lambda v: v.get("note") is None, lambda v: "note" not in v),
        (lambda v: True, lambda v: True),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_functions_of_values(function, expected, count):
    """On arrays where possible, else candidate by candidate."""
    space = space_from_dict(DEPTHS)
    candidates = random_candidates(space, count)
    feasible = Constraints(space, feasible=[function]).feasible(candidates)
    assert feasible.tolist() == [expected(values) for values in space.decode_all(candidates)]


def test_functions_get_arrays():
    space = space_from_dict(DEPTHS)
    received = []

    def record(values):
        received.append(values)
        return np.ones(len(values["kind"]), bool)

    vectors = [
        space.encode({"min_depth": 2, "max_depth": 3, "fast": True, **rest})
        for rest in ({"kind": "a"}, {"kind": "b", "share": 0.5, "note": "y"})
    ]
    assert Constraints(space, feasible=[record]).feasible(np.array(vectors)).all()
    (values,) = received
    assert {name: array.tolist() for name, array in values.items() if name != "share"} == {
        "min_depth": [2, 2],
        "max_depth": [3, 3],
        "kind": ["a", "b"],
        "fast": [True, True],
        "note": [None, "y"],
    }
    assert np.isnan(values["share"][0]) and values["share"][1] == 0.5
    assert [values[name].dtype.kind for name in ("min_depth", "kind", "fast", "share")] == list("iObf")


def test_tuples_are_not_compared_element_by_element():
    """NumPy would compare the array of two candidates with the two numbers of a shape."""
    shapes = {"name": "s", "variables": {"shape": {"choices": [[1, 2], [3, 4]]}}}
    constraints = Constraints(space_from_dict(shapes), feasible=[lambda v: v["shape"] == (1, 2)])
    assert constraints.feasible(np.array([[0], [1]])).tolist() == [True, False]


def test_functions_reduce_pools_and_repair_candidates():
    space = space_from_dict(DEPTHS)
    constraints = Constraints(space, feasible=[ordered_depths, lambda v: v["max_depth"] == 2])
    pool = sample_pool(constraints, 100)
    assert len(pool) == 100
    assert all(values["min_depth"] <= values["max_depth"] == 2 for values in space.decode_all(pool))
    ordered = Constraints(space, feasible=[ordered_depths])
    candidates = random_candidates(space, 50)
    repaired, violation = ordered.repair(candidates, np.random.default_rng(0))
    assert not ordered.feasible(candidates).all()
    assert (violation == 0).all() and ordered.feasible(repaired).all()
    assert (space.canonicalize(repaired) == repaired).all()
    # The violation counts the functions that fail
    fails = np.array([[4, 0, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    assert constraints.violation(fails).tolist() == [2, 1, 1, 0]


def test_functions_are_kept_with_more_bounds():
    space = space_from_dict(DEPTHS)
    constraints = Constraints(
        space, columns={"sum": lambda c: c[:, :2].sum(1)}, feasible=[ordered_depths]
    ).with_bounds(Constraint("sum", high=4))
    candidates = np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0]])
    assert constraints.feasible(candidates).tolist() == [False, True, False]


def test_columns_are_computed_of_canonical_candidates():
    space = space_from_dict(CONDITIONAL)
    seen = []
    constraints = Constraints(space, [Constraint("mine")], {"mine": lambda c: seen.append(c) or c.sum(1)})
    raw = space.sizes[None] - 1
    raw[0, 0] = 0  # Adam, without momentum
    constraints.feasible(raw)
    constraints.column_values(raw, "mine")
    assert all((candidates == space.canonicalize(raw)).all() for candidates in seen) and len(seen) == 2


def test_functions_that_fail_name_the_candidate():
    def broken(values):
        return values["depth"] > 1

    constraints = Constraints(space_from_dict(DEPTHS), feasible=[broken])
    message = (
        r"feasibility function broken \(test_constraints.py:\d+\) failed with KeyError: 'depth' for the values "
        r"\{'min_depth': 1, 'max_depth': 1, 'kind': 'a', 'fast': False\}"
    )
    with pytest.raises(ConstraintError, match=message):
        constraints.feasible(np.zeros((1, 6), int))


def test_functions_that_no_candidate_fulfills():
    space = space_from_dict(DEPTHS)
    constraints = Constraints(space, [Constraint("sum", high=9)], {"sum": lambda c: c.sum(1)})
    constraints = Constraints(
        space, constraints.constraints, constraints.columns, feasible=[lambda v: v["min_depth"] > 7]
    )
    message = (
        r"no candidate of depths was found that meets sum <= 9, <lambda> \(test_constraints.py:\d+\) "
        r"among 32 that were repaired; the nearest one has sum \d, the values \{'min_depth': "
    )
    with pytest.raises(ConstraintError, match=message):
        sample_pool(constraints, 10)


def test_repair_finds_values_of_continuous_variables():
    """Two numbers within a thousandth of each other and of 0.3."""
    variables = {"a": {"range": [0.0, 1.0]}, "b": {"range": [1e-6, 1.0], "log": True}}
    space = space_from_dict({"name": "s", "variables": variables})

    def distance(candidates):
        return np.array([abs(v["a"] - 0.3) + abs(v["b"] - 0.3) for v in space.decode_all(candidates)])

    constraints = Constraints(space, [Constraint("distance", high=1e-3)], {"distance": distance})
    repaired, violation = constraints.repair(random_candidates(space, 10), np.random.default_rng(0))
    assert (violation == 0).all() and (distance(repaired) <= 1e-3).all()
