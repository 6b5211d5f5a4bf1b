"""Costs of many candidates equal the cost of each network."""

import time

import numpy as np
import pytest

from fbnetv3.arch import ArchError, compute_cost
from fbnetv3.nars.space.cost_model import COST_COLUMNS, CostModel
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.variables import SpaceError
from tests.nars.space.spaces import BLOCKS, FBNETV3, IRREGULAR, SMALL, random_candidates


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def assert_equal_to_each(space, candidates, **arguments):
    costs = CostModel(space, **arguments)(candidates)
    for index, candidate in enumerate(candidates):
        try:
            cost = compute_cost(space.build_arch(candidate, "x"), **arguments)
            expected = tuple(getattr(cost, column) for column in COST_COLUMNS)
        except ArchError:
            expected = (-1, -1, -1)
        assert tuple(costs[column][index] for column in COST_COLUMNS) == expected, space.decode(candidate)
    return costs


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 10, "in_chans": 1}, {"num_classes": 0}])
def test_equal_to_the_cost_of_each_on_table_2(space, arguments):
    candidates = [np.zeros((1, 37), int), space.sizes[None] - 1, random_candidates(space, 150)]
    assert_equal_to_each(space, np.concatenate(candidates), **arguments)


def test_equal_on_a_space_with_every_kind_of_variable_and_with_invalid_candidates():
    space = space_from_dict(IRREGULAR)
    costs = assert_equal_to_each(space, random_candidates(space, 600))
    assert 0.1 < (costs["macs"] > 0).mean() < 0.9


def test_equal_on_a_space_whose_blocks_are_variables():
    space = space_from_dict(BLOCKS)
    candidates = np.stack(np.unravel_index(np.arange(space.num_candidates()), space.sizes), 1)
    costs = assert_equal_to_each(space, candidates)
    assert 0 < (costs["macs"] > 0).sum() < space.num_candidates()


def test_equal_on_a_space_with_inactive_and_continuous_variables():
    variables = {
        "deep": {"choices": [False, True]},
        "repeat": {"range": [2, 3], "when": {"deep": True}},
        "gate": {"choices": ["none", "hsigmoid"]},
        "act": {"choices": ["relu", "hswish"], "when": {"gate": "hsigmoid"}},
        "expansion": {"range": [1.0, 6.0]},
        "last": {"range": [1.0, 4.0], "log": True, "when": {"deep": False}},
    }
    row = {"block": "mbconv", "kernel": 3, "expansion": "$expansion", "channels": 24, "repeat": "$repeat"}
    rows = [
        {"block": "conv", "kernel": 3, "channels": 8, "stride": 2},
        {**row, "se": "$gate", "act": "$act"},
        {"block": "mbconv", "kernel": 5, "expansion": "$last", "channels": 16},
    ]
    template = {"resolution": 24, "stages": [{"rows": rows}]}
    space = space_from_dict({"name": "s", "variables": variables, "architecture": template})
    costs = assert_equal_to_each(space, random_candidates(space, 200))
    # Without `last`, the last block has no expansion and there is no network
    assert 0.3 < (costs["macs"] > 0).mean() < 0.7
    # Indices of inactive variables do not matter
    raw = np.random.default_rng(0).integers(0, space.sizes, (50, 6))
    assert (CostModel(space)(raw)["macs"] == CostModel(space)(space.canonicalize(raw))["macs"]).all()


def test_no_network_has_a_pooling_block_before_the_last():
    template = BLOCKS["architecture"]
    stages = [*template["stages"], {"rows": [{"block": "conv", "kernel": 1, "channels": 8}]}]
    space = space_from_dict({**BLOCKS, "architecture": {**template, "stages": stages}})
    assert (CostModel(space)(random_candidates(space, 20))["macs"] == -1).all()


def test_a_table_too_large_for_memory_gives_the_same(space, monkeypatch):
    candidates = random_candidates(space, 50)
    expected = CostModel(space)(candidates)
    monkeypatch.setattr("fbnetv3.nars.space.block_sums._MAX_TABLE_ROWS", 10)
    costs = CostModel(space)(candidates)
    assert all((costs[column] == expected[column]).all() for column in COST_COLUMNS)


def test_speed(space):
    """At least 100,000 candidates per second even on one busy core; benchmarks/pool_cost.py measures the rate."""
    model, candidates = CostModel(space), random_candidates(space, 20_000)
    model(candidates)
    start = time.perf_counter()
    model(candidates)
    assert len(candidates) / (time.perf_counter() - start) > 100_000


def test_a_space_without_networks():
    with pytest.raises(SpaceError, match="architecture: .* has no architecture template"):
        CostModel(space_from_dict(SMALL))


def test_no_candidates(space):
    none = np.zeros((0, len(space)), int)
    assert {len(values) for values in CostModel(space)(none).values()} == {0}
    assert CostModel(space).per_stage(none)["macs"].shape[0] == 0


@pytest.mark.parametrize("channels", [2**63, 2**70])
def test_channels_have_a_limit(channels):
    rows = [
        {"block": "conv", "kernel": "$k", "channels": 8, "stride": 2},
        {"block": "mbpool", "expansion": 2, "channels": channels},
    ]
    data = {"resolution": 32, "stages": [{"rows": rows}]}
    with pytest.raises(SpaceError, match="channels"):
        space_from_dict({"name": "s", "variables": {"k": {"choices": [3, 5]}}, "architecture": data})


def test_stages_cost_as_much_as_the_network_without_its_head(space):
    candidates = random_candidates(space, 50)
    # The last block pools to 1x1, so pooling costs one operation per channel
    heads = {0: {}, 10: {"macs": 1984 * 11, "params": 1984 * 10 + 10, "activations": 10}}
    for num_classes, head in heads.items():
        model = CostModel(space, num_classes)
        stages, network = model.per_stage(candidates), model(candidates)
        for column in COST_COLUMNS:
            assert stages[column].shape == (50, 7)
            assert (network[column] - stages[column].sum(1) == head.get(column, 0)).all()
    num_blocks = [len(space.build_arch(candidate, "x").blocks()) for candidate in candidates]
    assert (stages["blocks"].sum(1) == num_blocks).all()


def test_costs_of_stages_equal_those_of_the_architecture(space):
    candidate = random_candidates(space, 1)
    arch = space.build_arch(candidate[0], "x")
    stages = CostModel(space, 0).per_stage(candidate)
    by_stage = compute_cost(arch, num_classes=0).by_stage()
    assert stages["macs"][0].tolist() == [stage.macs for stage in by_stage]


def test_costs_do_not_depend_on_earlier_candidates(space):
    """Sides of feature maps are renumbered for each batch; table entries must not carry over."""
    candidates = random_candidates(space, 60)
    model = CostModel(space)
    expected = model(candidates)["macs"]
    single = [int(model(candidate[None])["macs"][0]) for candidate in candidates]
    assert single == expected.tolist() == [compute_cost(space.build_arch(c, "x")).macs for c in candidates]
