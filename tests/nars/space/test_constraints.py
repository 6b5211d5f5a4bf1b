"""Constraints: users' columns, invalid bounds, empty arrays."""

import numpy as np
import pytest

from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.feasibility import ConstraintError
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.space.spaces import FBNETV3, SMALL


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
