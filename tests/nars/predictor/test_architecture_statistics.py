"""Pretraining labels: costs of networks, of their stages, and users' columns."""

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.space.spaces import FBNETV3, SMALL


@pytest.fixture(scope="module")
def constraints():
    return Constraints(load_space(FBNETV3), [Constraint("macs", 400e6, 800e6)])


@pytest.fixture(scope="module")
def pool(constraints):
    return sample_pool(constraints, 1000)


def test_labels_of_networks(constraints, pool):
    assert list(pretraining_labels(constraints, pool)) == ["macs", "params"]
    assert list(pretraining_labels(constraints, pool, ["activations"])) == ["activations"]
    rich = pretraining_labels(constraints, pool, "rich")
    assert {"macs", "params", "activations", "log macs", "stage 3 macs", "stage 5 blocks"} <= set(rich)
    assert "stage 1 blocks" not in rich, "it is 1 for all"
    assert all(values.shape == (1000,) and np.isfinite(values).all() for values in rich.values())
    assert rich["log macs"] == pytest.approx(np.log(rich["macs"]))


def test_labels_of_a_space_without_networks_are_its_columns():
    space = space_from_dict(SMALL)
    pool = np.array([[0, 0, 0, 0], [1, 1, 0, 2], [2, 0, 0, 1]])
    columns = {
        "sum": lambda c: c.sum(1),
        "constant": lambda c: np.ones(len(c)),
        "positive": lambda c: 1 + c[:, 0],
    }
    constraints = Constraints(space, columns=columns)
    assert list(pretraining_labels(constraints, pool)) == ["sum", "positive"]
    assert list(pretraining_labels(constraints, pool, "rich")) == ["sum", "positive", "log positive"]
    assert pretraining_labels(Constraints(space), pool) == {}


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("rish", "unknown choice 'rish': did you mean rich"),
        (["mac"], "unknown column mac: did you mean macs"),
    ],
)
def test_unknown_labels(constraints, pool, selection, message):
    with pytest.raises(UsageError, match=message):
        pretraining_labels(constraints, pool, selection)
