"""Spaces for the tests."""

import numpy as np
from hypothesis import strategies as st

from fbnetv3.arch import configs_folder
from fbnetv3.nars.space import sampling
from fbnetv3.nars.space.search_space import space_from_dict

FBNETV3 = configs_folder() / "nars" / "spaces" / "fbnetv3.yaml"
CIFAR = FBNETV3.parent / "cifar10_small.yaml"

# Without networks, with a variable of each kind
SMALL = {
    "name": "small",
    "variables": {
        "width": {"range": [8, 16, 4]},
        "kernel": {"choices": [3, 5]},
        "fixed": {"choices": ["only"]},
        "lr": {"range": [1, 3], "scale": 0.1, "part": "recipe"},
    },
}

# Each field of a row is a variable somewhere, and some candidates are invalid
IRREGULAR = {
    "name": "irregular",
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
                    {
                        "block": "mbconv",
                        "kernel": 3,
                        "expansion": "$e",
                        "channels": "$c1",
                        "repeat": "$n",
                        "stride": 2,
                    }
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
                    {
                        "block": "mbconv",
                        "kernel": 3,
                        "expansion": 2,
                        "channels": 8,
                        "stride": 2,
                        "dw_padding": "$pad",
                    }
                ]
            },
            {
                "rows": [
                    {
                        "block": "mbconv",
                        "kernel": 3,
                        "expansion": 3,
                        "channels": 24,
                        "dw_group_width": "$group",
                    }
                ]
            },
            {"rows": [{"block": "mbpool", "expansion": "$e", "channels": 32}]},
        ],
    },
}

# The block itself is a variable; two pooling blocks in sequence (n is 2) are invalid
BLOCKS = {
    "name": "blocks",
    "variables": {
        "n": {"range": [1, 2]},
        "block": {"choices": ["mbconv", "mbconv_det", "conv"]},
        "kernel": {"choices": [3, 5]},
    },
    "architecture": {
        "resolution": 16,
        "stages": [
            {"rows": [{"block": "conv", "kernel": "$kernel", "channels": 8, "stride": 2}]},
            {"rows": [{"block": "$block", "kernel": 3, "expansion": 2, "channels": 16, "repeat": "$n"}]},
            {"rows": [{"block": "mbpool", "expansion": 2, "channels": 24, "repeat": "$n"}]},
        ],
    },
}


# As in Optuna's or ConfigSpace's examples: a pipeline whose parameters depend on earlier choices
CONDITIONAL = {
    "name": "conditional",
    "variables": {
        "optimizer": {"choices": ["adam", "rmsprop", "sgd"], "part": "recipe"},
        "lr": {"range": [1e-5, 1e-1], "log": True, "part": "recipe"},
        "momentum": {"range": [0.0, 1.0], "when": {"optimizer": ["rmsprop", "sgd"]}, "part": "recipe"},
        "nesterov": {"choices": [True, False], "when": {"optimizer": "sgd"}, "part": "recipe"},
        "depth": {"range": [1, 3]},
        "width": {"range": [16, 1024], "log": True},
        "width_2": {"range": [16, 1024], "log": True, "when": {"depth": [2, 3]}},
        "width_3": {"range": [16, 1024], "log": True, "when": {"depth": 3}},
        "dropout_3": {"choices": [None, 0.1, 0.5], "ordered": True, "when": {"width_3": [16, 17]}},
    },
}


def random_candidates(space, count, seed=0):
    return sampling.random_candidates(space, count, np.random.default_rng(seed))


@st.composite
def conditional_spaces(draw):
    """Draw a space with up to six variables of all kinds, most of which depend on one or two others."""
    kinds = [
        {"range": [1, 5]},
        {"range": [1, 40], "log": True},
        {"range": [0.5, 2.0]},
        {"range": [1e-6, 1.0], "log": True},
        {"range": [-0.3, 0.3, 0.1]},
        {"choices": ["a", "b", "c"]},
        {"choices": [None, (1, 2), (1, 3), True]},
        {"choices": [1, 2, 8], "ordered": True},
    ]
    entries = draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=6))
    variables = {}
    for number, entry in enumerate(entries):
        parents = draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True)) if number else []
        when = {}
        for parent in parents:
            values = space_from_dict({"name": "x", "variables": {"x": entries[parent]}}).variables[0].values
            indices = draw(st.lists(st.integers(0, min(len(values), 5) - 1), min_size=1, max_size=3))
            when[f"v{parent}"] = [values[index] for index in indices]
        part = draw(st.sampled_from(["architecture", "recipe"]))
        variables[f"v{number}"] = {**entry, "when": when, "part": part}
    return space_from_dict({"name": "drawn", "variables": variables})
