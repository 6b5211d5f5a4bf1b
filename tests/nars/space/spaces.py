"""Spaces for the tests."""

import numpy as np

from fbnetv3.arch import configs_folder

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


def random_candidates(space, count, seed=0):
    return np.random.default_rng(seed).integers(0, space.sizes, (count, len(space)))
