"""Conditions: active variables, canonical candidates, and their number."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.sampling import list_candidates
from fbnetv3.nars.space.search_space import Space, space_from_dict
from fbnetv3.nars.space.variables import Condition, SpaceError, Variable
from tests.hardening.conftest import examples
from tests.nars.space.spaces import CONDITIONAL, conditional_spaces, random_candidates

SGD = {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True, "depth": 1, "width": 64}
ADAM = {"optimizer": "adam", "lr": 1e-3, "depth": 3, "width": 64, "width_2": 32, "width_3": 17}
ADAM["dropout_3"] = None


@pytest.fixture(scope="module")
def space():
    return space_from_dict(CONDITIONAL)


@pytest.mark.parametrize("values", [SGD, ADAM], ids=["sgd", "adam"])
def test_inactive_variables_have_no_value(space, values):
    vector = space.encode(values)
    assert space.decode(vector) == values
    active = [variable.name in values for variable in space.variables]
    assert space.active(vector[None]).tolist() == [active]
    assert (vector[~np.array(active)] == 0).all()
    candidate = Candidate(space, vector)
    assert dict(candidate) == values and candidate.get("width_9") is None
    assert "nesterov" not in Candidate(space, space.encode(ADAM))


def test_a_child_of_an_inactive_variable_is_inactive(space):
    """dropout_3 depends on width_3, which depends on the depth."""
    vector = space.encode(ADAM)
    vector[space.variable_indices("architecture")[0]] = 0  # depth 1
    names = [variable.name for variable in space.variables]
    active = dict(zip(names, space.active(vector[None])[0].tolist(), strict=True))
    assert not active["width_2"] and not active["width_3"] and not active["dropout_3"]


def test_candidates_that_differ_in_inactive_variables_are_the_same(space):
    vector = space.encode(ADAM)
    other = vector.copy()
    other[[v.name for v in space.variables].index("momentum")] = 500_000
    assert space.decode(other) == ADAM
    assert (space.canonicalize(other[None]) == vector).all()
    assert (space.encode_features(other[None]) == space.encode_features(vector[None])).all()
    assert (space.positions(other[None]) == space.positions(vector[None])).all()


def test_values_of_inactive_variables_are_refused(space):
    assert (space.encode({**ADAM, "momentum": None}) == space.encode(ADAM)).all()
    for values, message in (
        (
            {**ADAM, "momentum": 0.9},
            "momentum: 0.9 must be left out, except where optimizer is rmsprop or sgd",
        ),
        ({**SGD, "momentum": 1.5}, r"momentum: 1.5 must be in \[0, 1\]"),
        ({**SGD, "nesterov": None}, "nesterov: None must be one of True, False"),
        ({name: value for name, value in SGD.items() if name != "nesterov"}, "nesterov: is missing"),
    ):
        with pytest.raises(SpaceError, match=message):
            space.encode(values)


def test_the_predictor_does_not_see_inactive_variables(space):
    """Their features are in the middle; Adam has neither momentum (a number) nor nesterov (two categories)."""
    features = space.encode_features(space.encode(ADAM)[None], "recipe")
    assert features[0].tolist() == pytest.approx([1, 0, 0, 0.5, 0.5, 0.5, 0.5])
    features = space.encode_features(space.encode(SGD)[None], "recipe")
    assert features[0].tolist() == pytest.approx([0, 0, 1, 0.5, 0.9, 1, 0])


def test_all_conditions_must_hold():
    variables = {
        "a": {"choices": [1, 2, 3]},
        "b": {"choices": ["x", "y"]},
        "c": {"range": [1, 5], "when": {"a": [1, 3], "b": "y"}},
    }
    space = space_from_dict({"name": "s", "variables": variables})
    candidates = list_candidates(space)
    decoded = [space.decode(candidate) for candidate in candidates]
    assert all(("c" in values) == (values["a"] != 2 and values["b"] == "y") for values in decoded)
    # Without c: (1, x), (2, x), (3, x), (2, y)
    assert len(candidates) == space.num_candidates() == 4 + 2 * 5


def test_numbers_of_candidates():
    """A network of up to 20 layers, each with its own width and, except for the first, kernel."""
    layers = {}
    for layer in range(1, 21):
        when = {"depth": list(range(layer, 21))}
        layers[f"width{layer}"] = {"choices": [8, 16, 32], "when": when}
        layers[f"kernel{layer}"] = {"choices": [3, 5], "when": {**when, f"width{layer}": [16, 32]}}
    space = space_from_dict({"name": "s", "variables": {"depth": {"range": [1, 20]}, **layers}})
    # A layer has width 8, or one of two widths with one of two kernels
    assert space.num_candidates() == sum(5**depth for depth in range(1, 21))


def test_many_parents_before_their_children():
    switches = {f"use{i}": {"choices": [False, True]} for i in range(60)}
    values = {f"x{i}": {"range": [0.0, 1.0], "when": {f"use{i}": True}} for i in range(60)}
    space = space_from_dict({"name": "s", "variables": {**switches, **values}})
    assert space.num_candidates() == (1 + 1_000_001) ** 60


def test_a_subspace_drops_conditions_on_the_other_part():
    variables = {
        "deep": {"choices": [False, True]},
        "drop_rate": {"range": [0, 3], "part": "recipe", "when": {"deep": True}},
        "warmup": {"range": [1, 2], "part": "recipe", "when": {"drop_rate": [2, 3], "deep": True}},
    }
    space = space_from_dict({"name": "s", "variables": variables})
    recipes = space.subspace("recipe")
    assert recipes.decode(np.array([0, 0])) == {"drop_rate": 0}
    assert recipes.decode(np.array([2, 1])) == {"drop_rate": 2, "warmup": 2}
    assert recipes.num_candidates() == space.num_candidates("recipe") == 2 + 2 * 2
    assert space.num_candidates() == 1 + 6


def test_parents_whose_values_are_lists():
    shapes = {"shape": {"choices": [[3, 4], [5], 6]}}
    for when, active in (([3, 4], [0]), ([[3, 4], 6], [0, 2]), ((5,), [1])):
        variables = {**shapes, "x": {"choices": ["only"], "when": {"shape": when}}}
        space = space_from_dict({"name": "s", "variables": variables})
        assert [i for i in range(3) if space.active(np.array([[i, 0]]))[0, 1]] == active


def test_a_space_made_of_variables():
    when = (Condition("a", (2,)),)
    space = Space("s", (Variable("a", (1, 2), False), Variable("b", ("x", "y"), True, when=when)))
    assert space.decode(np.array([0, 1])) == {"a": 1}
    assert space.num_candidates() == 3 and space.is_categorical.tolist() == [False, True]
    with pytest.raises(SpaceError, match=r"variables\.b\.when\.a: a must be defined before"):
        Space("s", tuple(reversed(space.variables)))


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"optim": "sgd"}, r"\.optim: optim is not a variable: did you mean optimizer\?"),
        ({"optimizer": "sdg"}, r"\.optimizer: 'sdg' is not a value of optimizer: did you mean sgd\?"),
        (
            {"optimizer": ["sgd", "x"]},
            r"\.optimizer: 'x' is not a value of optimizer: available: adam, sgd",
        ),
        ({"lr": 2}, r"\.lr: 2 is not a value of lr: must be in \[0, 1\]"),
        ({"optimizer": []}, r"\.optimizer: must have at least one value"),
        ({"later": 1}, r"\.later: later must be defined before the variable that depends on it"),
        ({"momentum": 1}, r"\.momentum: momentum must be defined before"),
        ("sgd", r": 'sgd' must be a mapping such as \{optimizer: sgd\}"),
    ],
)
def test_invalid_conditions(when, message):
    variables = {
        "optimizer": {"choices": ["adam", "sgd"]},
        "lr": {"range": [0.0, 1.0]},
        "momentum": {"range": [1, 2], "when": when},
        "later": {"range": [1, 2]},
    }
    with pytest.raises(SpaceError, match=r"variables\.momentum\.when" + message):
        space_from_dict({"name": "s", "variables": variables})


SEEDS = st.integers(0, 1000)


@examples(40)
@given(space=conditional_spaces(), seed=SEEDS)
def test_encode_inverts_decode(space, seed):
    candidates = random_candidates(space, 20, seed)
    for candidate, values in zip(candidates, space.decode_all(candidates), strict=True):
        assert (space.encode(values) == candidate).all()
        assert values == space.decode(candidate)


@examples(40)
@given(space=conditional_spaces(), seed=SEEDS)
def test_canonical_forms(space, seed):
    """They have the same values, are their own canonical forms, and equal only those with the same values."""
    raw = np.random.default_rng(seed).integers(0, np.minimum(space.sizes, 3), (20, len(space)))
    canonical = space.canonicalize(raw)
    assert (space.canonicalize(canonical) == canonical).all()
    assert (space.active(canonical) == space.active(raw)).all()
    values = space.decode_all(raw)
    assert space.decode_all(canonical) == values
    features = space.encode_features(raw)
    for i in range(20):
        same = (canonical[i] == canonical[0]).all()
        assert (values[i] == values[0]) == same
        if same:
            assert (features[i] == features[0]).all()


@examples(40)
@given(space=conditional_spaces(), seed=SEEDS)
def test_random_candidates_are_canonical_and_inside_the_space(space, seed):
    candidates = random_candidates(space, 20, seed)
    assert (space.canonicalize(candidates) == candidates).all()
    positions = space.positions(candidates)
    assert positions.dtype == np.float64 and positions.min() >= 0 and positions.max() <= 1


@examples(40)
@given(space=conditional_spaces())
def test_the_number_of_candidates_is_that_of_the_list(space):
    assume(space.num_candidates() <= 5000)
    candidates = list_candidates(space)
    assert len(candidates) == len(np.unique(candidates, axis=0)) == space.num_candidates()
    assert (space.canonicalize(candidates) == candidates).all()
    points = np.random.default_rng(0).random((20 * len(candidates), len(space)))
    samples = space.from_unit(points)
    listed = set(map(tuple, candidates))
    assert set(map(tuple, samples)) <= listed


@examples(40)
@given(space=conditional_spaces(), seed=SEEDS)
def test_neighbors(space, seed):
    """They are canonical, distinct, and one variable of the candidate has another value."""
    (candidate,) = random_candidates(space, 1, seed)
    neighbors = space.neighbors(candidate, np.random.default_rng(seed), count_per_variable=8)
    assert (space.canonicalize(neighbors) == neighbors).all()
    assert len(np.unique(neighbors, axis=0)) == len(neighbors)
    active = space.active(candidate[None])[0]
    still_active = space.active(neighbors) & active
    assert (((neighbors != candidate) & still_active).sum(1) == 1).all()
    # All other values of small variables
    for column in np.flatnonzero(active & (space.sizes <= 9)):
        changed = neighbors[(neighbors[:, column] != candidate[column]) & still_active[:, column]]
        assert sorted(changed[:, column]) == [
            i for i in range(space.sizes[column]) if i != candidate[column]
        ]
    large = np.flatnonzero(active & (space.sizes > 9))
    for column in large:
        num_changed = ((neighbors[:, column] != candidate[column]) & still_active[:, column]).sum()
        assert 2 <= num_changed <= 8


def test_variables_that_become_active_have_random_values(space):
    neighbors = [
        space.decode(neighbor)
        for seed in range(40)
        for neighbor in space.neighbors(space.encode(ADAM), np.random.default_rng(seed))
    ]
    momenta = [values["momentum"] for values in neighbors if "momentum" in values]
    assert len(set(momenta)) > 70 and 0.3 < np.mean(momenta) < 0.7


def test_points_must_have_a_column_for_each_variable(space):
    with pytest.raises(SpaceError, match=r"points must have the shape \(N, 9\), not \(3,\)"):
        space.from_unit(np.zeros(3))
