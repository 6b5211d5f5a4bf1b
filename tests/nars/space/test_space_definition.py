"""A space's definition builds the same space again, through JSON as well."""

import json

import pytest

from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.space_definition import space_definition, space_digest
from tests.nars.space.spaces import CIFAR, FBNETV3, IRREGULAR, SMALL

VARIABLES = {
    "integers": {"range": [3, 30, 9]},
    "scaled": {"range": [20, 90, 7], "scale": 1e-3, "part": "recipe"},
    "octaves": {"range": [1, 64], "log": True},
    "single": {"range": [0.123456789012345, 0.123456789012345]},
    "one": {"range": [4, 4], "log": True},
    "floats": {"range": [0.5, 3]},
    "log_floats": {"range": ["1e-5", 0.1], "log": True},
    "sizes": {"choices": [16, 24, 40], "ordered": True},
    "even": {"choices": [1, 2, 3], "ordered": True},
    "words": {"choices": ["small", "large"], "ordered": True},
    "pairs": {"choices": [[1, 2], [3, 4]]},
    "mixed": {"choices": [None, True, 1, "a"], "when": {"words": "large", "pairs": [[3, 4]]}},
}


@pytest.mark.parametrize(
    "space",
    [
        load_space(FBNETV3),
        load_space(FBNETV3).subspace("recipe"),
        load_space(CIFAR),
        space_from_dict(SMALL),
        space_from_dict(IRREGULAR),
        space_from_dict({"name": "all", "source": "tests", "variables": VARIABLES}),
    ],
    ids=("fbnetv3", "recipes", "cifar", "small", "irregular", "all kinds"),
)
def test_a_definition_builds_the_same_space(space):
    definition = json.loads(json.dumps(space_definition(space)))
    again = space_from_dict(definition)
    assert again.variables == space.variables
    assert space_digest(again) == space_digest(space)


def test_ranges_are_not_listed():
    space = space_from_dict({"name": "wide", "variables": {"x": {"range": [0, 50_000], "scale": 0.01}}})
    assert space_definition(space)["variables"]["x"]["range"] == [0.0, 500.0, 0.01]
