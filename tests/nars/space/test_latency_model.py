"""Latencies of many candidates equal those of each network; a search within a latency budget."""

import json

import numpy as np
import pytest

from fbnetv3.arch import ArchError
from fbnetv3.arch.latency_table import (
    LatencyError,
    LatencyTable,
    LatencyTableWriter,
    MeasuredDevice,
    block_shapes,
    load_latency_table,
)
from fbnetv3.errors import FieldError
from fbnetv3.nars import search
from fbnetv3.nars.settings.budgets import build_constraints
from fbnetv3.nars.settings.search_settings import parse_settings
from fbnetv3.nars.space.latency_model import LatencyModel, possible_shapes
from fbnetv3.nars.space.sampling import list_candidates
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.variables import SpaceError
from fbnetv3.nars.trials.trial_store import TrialStoreError
from tests.nars.space.spaces import BLOCKS, CIFAR, FBNETV3, IRREGULAR, SMALL, random_candidates
from tests.nars.toy import FAST

DEVICE = MeasuredDevice("a phone", "onnxruntime 1.0", 1, 1)


def made_up_latency(shape):
    return 1e-3 * (1 + hash((shape.kind, shape.side, *vars(shape.spec).values())) % 1000)


def table_for(space, num_classes=1000):
    return LatencyTable(
        DEVICE, {shape: made_up_latency(shape) for shape in possible_shapes(space, num_classes)}
    )


@pytest.mark.parametrize("num_classes", [10, 0])
@pytest.mark.parametrize(
    "space",
    [load_space(CIFAR), space_from_dict(IRREGULAR), space_from_dict(BLOCKS)],
    ids=["cifar10_small", "irregular", "blocks"],
)
def test_equal_to_the_latency_of_each(space, num_classes):
    table = table_for(space, num_classes)
    candidates = random_candidates(space, 300)
    num_networks = 0
    for candidate, ms in zip(candidates, LatencyModel(space, table, num_classes)(candidates), strict=True):
        try:
            expected = table.predict(space.build_arch(candidate, "x"), num_classes)
        except ArchError:
            assert ms == np.inf
        else:
            assert ms == pytest.approx(expected, rel=1e-12)
            num_networks += 1
    assert num_networks > 30


def test_possible_shapes_contain_every_block_of_table_2():
    space = load_space(FBNETV3)
    shapes = set(possible_shapes(space))
    assert len(shapes) == 16_934
    for candidate in random_candidates(space, 60):
        assert shapes.issuperset(block_shapes(space.build_arch(candidate, "x")))


def test_possible_shapes_contain_those_with_and_without_an_inactive_variable():
    variables = {
        "gate": {"choices": ["none", "hsigmoid"]},
        "act": {"choices": ["relu", "hswish"], "when": {"gate": "hsigmoid"}},
    }
    row = {"block": "mbconv", "kernel": 3, "expansion": 2, "channels": 8, "se": "$gate", "act": "$act"}
    template = {"resolution": 32, "stages": [{"rows": [row]}]}
    space = space_from_dict({"name": "s", "variables": variables, "architecture": template})
    shapes = set(possible_shapes(space))
    for candidate in list_candidates(space):
        assert shapes.issuperset(block_shapes(space.build_arch(candidate, "x")))


def test_blocks_with_a_continuous_variable_cannot_be_listed():
    row = {"block": "mbconv", "kernel": 3, "expansion": "$e", "channels": 8}
    template = {"resolution": 32, "stages": [{"rows": [row]}]}
    space = space_from_dict(
        {"name": "s", "variables": {"e": {"range": [1.0, 2.0]}}, "architecture": template}
    )
    with pytest.raises(
        SpaceError, match="e: is continuous, so blocks cannot be listed: give its range a step"
    ):
        possible_shapes(space)


def test_no_candidates():
    space = load_space(CIFAR)
    assert LatencyModel(space, table_for(space))(np.zeros((0, len(space)), int)).shape == (0,)


def test_a_table_without_a_block():
    space = load_space(CIFAR)
    table = LatencyTable(DEVICE, {})
    with pytest.raises(LatencyError, match=r"measure_net\.py --space"):
        LatencyModel(space, table)(random_candidates(space, 3))


def depth(candidate, epochs):
    """Prefer deep networks, no matter their cost."""
    return [
        sum(candidate[f"s{i}_repeat"] for i in range(2, 6)) * epoch / epochs
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def table_file(tmp_path):
    writer = LatencyTableWriter(tmp_path / "table.jsonl", DEVICE)
    for shape in possible_shapes(load_space(CIFAR), 10):
        writer.add_block(shape, shape.side * shape.spec.in_channels / 1e4)
    return tmp_path / "table.jsonl"


def test_a_search_within_a_latency(table_file, tmp_path):
    space = load_space(CIFAR)
    latencies = LatencyModel(space, load_latency_table(table_file), 10)(random_candidates(space, 2000))
    fast, slow = (round(float(ms), 4) for ms in np.quantile(latencies, [0.02, 0.5]))
    settings = {
        "executor": "serial",
        "predictor": FAST,
        "num_classes": 10,
        "epochs": 2,
        "paper": True,
        "rounds": 2,
        "round_size": 8,
        "pool_size": 300,
    }
    trained = search(space, depth, tmp_path / "out", **settings)
    result = search(  # trains nothing
        space,
        depth,
        tmp_path / "out",
        resume=True,
        latency=str(table_file),
        budgets=[{"latency_ms": fast}, {"latency_ms": slow}],
        **settings,
    )
    assert [trial.number for trial in result.trials] == [trial.number for trial in trained.trials]
    recommendations = result.recommendations
    assert [r.name for r in recommendations] == [f"latency_ms_{fast:.6g}", f"latency_ms_{slow:.6g}"]
    for recommendation, budget in zip(recommendations, (fast, slow), strict=True):
        assert recommendation.columns["latency_ms"] <= budget
        provenance = json.loads(recommendation.files.provenance.read_text())
        assert provenance["columns"]["latency_ms"] == recommendation.columns["latency_ms"]
    assert recommendations[0].columns["latency_ms"] > 0.8 * fast
    assert recommendations[1].predicted > recommendations[0].predicted


@pytest.mark.parametrize(
    ("space", "latency", "error"),
    [
        (CIFAR, 3, FieldError),
        (CIFAR, "missing.jsonl", LatencyError),
        (SMALL, "table.jsonl", FieldError),
        (FBNETV3, "table.jsonl", LatencyError),
    ],
)
def test_invalid_latency_settings(space, latency, error, table_file):
    space = space_from_dict(space) if isinstance(space, dict) else load_space(space)
    latency = str(table_file) if latency == "table.jsonl" else latency
    with pytest.raises(error):
        build_constraints(parse_settings({"latency": latency}), space)


def test_the_table_of_a_constraint_must_not_change(table_file, tmp_path):
    settings = {
        "executor": "serial",
        "predictor": FAST,
        "num_classes": 10,
        "epochs": 2,
        "evaluations": 4,
    }
    settings |= {"pool_size": 50, "constraints": {"latency_ms": 5}, "latency": str(table_file)}
    search(CIFAR, depth, tmp_path / "out", **settings)
    with table_file.open("a") as f:
        f.write(table_file.read_text().splitlines()[-1] + "\n")
    with pytest.raises(TrialStoreError, match="a different latency"):
        search(CIFAR, depth, tmp_path / "out", resume=True, **settings)
