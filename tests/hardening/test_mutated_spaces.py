"""Spaces and searches with something wrong: an error that says what, or candidates that make sense."""

import numpy as np
import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from fbnetv3.arch import ArchDef, ArchError, cost_of
from fbnetv3.config.recipe import Recipe, RecipeError
from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.nars_search import _Plan
from fbnetv3.nars.algorithm.search_settings import load_search_config
from fbnetv3.nars.evaluators.evaluator_registry import build_evaluator
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import SpaceError, load_space
from tests.hardening.conftest import examples
from tests.hardening.mutations import NASTY, mutated_yaml

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
    "recipe": {"optimizer": "$optimizer", "lr": "$lr", "weight_decay": "1e-5", "ema": "$ema"},
}
SEARCH = {
    "space": SPACE,
    "evaluator": "tests.nars.toy:evaluate",
    "output": "out",
    "epochs": 3,
    "pool": 50,
    "rounds": 2,
    "batch": 4,
    "constraints": {"macs": [0, "4e9"]},
    "columns": {"spent": "tests.nars.toy:spent"},
    "budgets": [{"macs": 3e9}, {"params": [None, 1e9]}],
    "stop_above": 0.9,
    "labels": ["macs"],
    "predictor": {"members": 4, "width": 16, "lr": "1e-3"},
    "evolution": {"random": 10, "top": 2},
    "executor": "serial",
    "scaled": {"big": {"from": "macs_3G", "macs": 1e8}},
    "known": {"A": {"macs": "357e6", "accuracy": 79.6}},
    "training": {"SOLVER.EPOCHS": 3},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("spaces") / "mutated.yaml"


def check_space(space, seed):
    """Whatever is accepted decodes, and its networks and recipes make sense or say why not."""
    assert min(space.sizes) >= 1 and space.size() >= 1
    rng = np.random.default_rng(seed)
    candidates = np.concatenate([np.zeros((1, len(space)), int), rng.integers(0, space.sizes, (5, len(space)))])
    assert np.isfinite(space.encode(candidates)).all()
    costs = CostModel(space) if space.architecture is not None else None
    macs = costs(candidates)["macs"] if costs else None
    for i, candidate in enumerate(candidates):
        assert (space.candidate(space.decode(candidate)) == candidate).all()
        if space.architecture is not None:
            try:
                arch = space.arch(candidate, "x")
            except ArchError:
                assert space.name is not None
            else:
                assert isinstance(arch, ArchDef)
                assert macs[i] in (-1, cost_of(arch).macs)
        if space.recipe is not None:
            try:
                assert isinstance(space.make_recipe(candidate), Recipe)
            except RecipeError as error:
                assert str(error)


@examples(120)
@given(text=mutated_yaml(SPACE), seed=st.integers(0, 99))
def test_spaces(file, text, seed):
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
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
def test_searches(file, text):
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_search_config(file, ["pool", "20"])
        plan = _Plan(config.space, config.settings)
        build_evaluator(config.evaluator, config.settings.evaluator_args)
    except UserError as error:
        assert str(error)
        return
    event("accepted")
    assert len(plan.pool) >= 1 and set(plan.budgets)
    assert plan.constraints.met(plan.pool).all()


KEYS = st.sampled_from([*SEARCH, "predictor.members", "evolution.top", "space.name", "x", "", ".", "constraints.macs"])
VALUES = st.one_of(
    st.integers(1, 60).map(str),
    st.floats(0, 1).map(str),
    st.sampled_from(["null", "[macs]", "paper", "rich", "serial", "joint", "recipe", "{macs: 1e9}"]),
    st.sampled_from(["2001-13-45", "!!bool x", "=", "&a [*a]", "[" * 5000, "9" * 5000, "{", "\0", "!!map [1]", "1:2"]),
    NASTY.map(str),
    st.text(max_size=20),
)


@examples(80)
@given(pairs=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3), odd=st.booleans())
def test_overrides_of_searches(file, pairs, odd):
    valid = file.with_name("valid.yaml")
    valid.write_text(yaml.safe_dump(SEARCH))
    overrides = [part for pair in pairs for part in pair]
    try:
        config = load_search_config(valid, overrides[: len(overrides) - odd])
    except UserError as error:
        assert str(error)
    else:
        event("accepted")
        assert config.settings.batch >= 2


def test_the_valid_ones_are_accepted(file):
    file.write_text(yaml.safe_dump(SEARCH))
    config = load_search_config(file)
    _Plan(config.space, config.settings)
    check_space(config.space, 0)
