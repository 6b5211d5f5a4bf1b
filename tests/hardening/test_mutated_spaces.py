"""Spaces and searches with mistakes: either an error that says what is wrong, or valid candidates."""

import numpy as np
import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from fbnetv3.arch import ArchDef, ArchError, compute_cost
from fbnetv3.config.recipe import Recipe, RecipeError
from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.evaluators.evaluator_registry import build_evaluator
from fbnetv3.nars.settings.search_config import load_search_config
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from fbnetv3.nars.space.variables import SpaceError
from tests.hardening.conftest import examples
from tests.hardening.mutations import UNEXPECTED_VALUES, mutated_yaml

SPACE = {
    "name": "small",
    "source": "here",
    "variables": {
        "side": {"range": [16, 32, 8]},
        "kernel": {"choices": [3, 5]},
        "width": {"range": [8, 24, 8]},
        "depth": {"range": [1, 3]},
        "factor": {"range": [1, 4]},
        "act": {"choices": ["hswish", "relu"]},
        "lr": {"range": [2, 40, 2], "scale": 0.001, "part": "recipe"},
        "optimizer": {"choices": ["rmsprop", "sgd"], "part": "recipe"},
        "ema": {"choices": [True, False], "part": "recipe"},
        "weight_decay": {
            "range": [1e-6, 1e-4],
            "log": True,
            "part": "recipe",
            "when": {"optimizer": "sgd"},
        },
        "mixup": {"choices": [0.0, 0.2], "ordered": True, "part": "recipe", "when": {"ema": [True]}},
    },
    "architecture": {
        "resolution": "$side",
        "resize": 36,
        "stages": [
            {"rows": [{"block": "conv", "kernel": 3, "channels": 8, "stride": 2, "act": "$act"}]},
            {
                "rows": [
                    {
                        "block": "mbconv",
                        "kernel": "$kernel",
                        "expansion": ["$factor", 2],
                        "channels": "$width",
                        "repeat": "$depth",
                    }
                ]
            },
            {"rows": [{"block": "mbpool", "expansion": 2, "channels": 16}]},
        ],
    },
    "recipe": {
        "optimizer": "$optimizer",
        "lr": "$lr",
        "weight_decay": "$weight_decay",
        "ema": "$ema",
        "mixup": "$mixup",
    },
}
SEARCH = {
    "space": SPACE,
    "evaluator": "tests.nars.toy:evaluate",
    "output": "out",
    "epochs": 3,
    "pool_size": 50,
    "evaluations": 9,
    "initial_trials": 4,
    "window": 2,
    "final_share": 0.2,
    "paper": False,
    "rounds": 2,
    "round_size": 4,
    "constraints": {"macs": [0, "4e9"]},
    "columns": {"spent": "tests.nars.toy:spent"},
    "first_candidates": [],
    "budgets": [{"macs": 3e9}, {"params": [None, 1e9]}],
    "early_stopping_correlation": 0.9,
    "pretraining_labels": ["macs"],
    "predictor": {"members": 4, "width": 16, "lr": "1e-3"},
    "evolution": {"random": 10, "top": 2},
    "executor": "serial",
    "scaled_networks": {"big": {"from": "macs_3G", "macs": 1e8}},
    "reference_networks": {"A": {"macs": "357e6", "accuracy": 79.6}},
    "training_config": {"SOLVER.EPOCHS": 3},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("spaces") / "mutated.yaml"


def check_space(space, seed):
    """Check that candidates round-trip, and that their networks and recipes are valid or refused with a reason."""
    assert min(space.sizes) >= 1 and space.num_candidates() >= 1
    rng = np.random.default_rng(seed)
    candidates = np.concatenate(
        [np.zeros((1, len(space)), int), rng.integers(0, space.sizes, (5, len(space)))]
    )
    assert np.isfinite(space.encode_features(candidates)).all()
    macs = CostModel(space)(candidates)["macs"] if space.architecture is not None else None
    for i, candidate in enumerate(candidates):
        assert (space.encode(space.decode(candidate)) == space.canonicalize(candidate[None])).all()
        if space.architecture is not None:
            try:
                arch = space.build_arch(candidate, "x")
            except ArchError:
                assert space.name is not None
            else:
                assert isinstance(arch, ArchDef)
                assert macs[i] in (-1, compute_cost(arch).macs)
        if space.recipe is not None:
            try:
                assert isinstance(space.build_recipe(candidate), Recipe)
            except RecipeError as error:
                assert str(error)


@examples(120)
@given(text=mutated_yaml(SPACE), seed=st.integers(0, 99))
def test_mutated_spaces(file, text, seed):
    file.write_text(text)
    try:
        space = load_space(file)
    except UserError as error:
        assert isinstance(error, SpaceError) and str(error)
        return
    event("accepted")
    try:
        check_space(space, seed)
    except SpaceError as error:
        assert "expansion" in str(error)


@examples(60)
@given(text=mutated_yaml(SEARCH))
def test_mutated_searches(file, text):
    file.write_text(text)
    try:
        config = load_search_config(file, ["pool_size", "20"])
        plan = SearchPlan(config.space, config.settings)
        build_evaluator(config.evaluator, config.settings.evaluator_args)
    except UserError as error:
        assert str(error)
        return
    event("accepted")
    assert len(plan.pool) >= 1 and set(plan.budgets)
    assert plan.constraints.feasible(plan.pool).all()


KEYS = st.sampled_from(
    [*SEARCH, "predictor.members", "evolution.top", "space.name", "x", "", ".", "constraints.macs"]
)
VALUES = st.one_of(
    st.integers(1, 60).map(str),
    st.floats(0, 1).map(str),
    st.sampled_from(
        ["null", "[macs]", "paper", "rich", "serial", "joint", "recipe", "{macs: 1e9}", "{", "1:2"]
    ),
    UNEXPECTED_VALUES.map(str),
)


@examples(80)
@given(pairs=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3), omit_last=st.booleans())
def test_mutated_overrides_of_searches(file, pairs, omit_last):
    valid = file.with_name("valid.yaml")
    valid.write_text(yaml.safe_dump(SEARCH))
    overrides = [text for pair in pairs for text in pair]
    try:
        config = load_search_config(valid, overrides[: len(overrides) - omit_last])
    except UserError as error:
        assert str(error)
    else:
        event("accepted")
        assert config.settings.round_size >= 2


def test_the_unmutated_search_is_accepted(file):
    file.write_text(yaml.safe_dump(SEARCH))
    config = load_search_config(file)
    SearchPlan(config.space, config.settings)
    check_space(config.space, 0)
