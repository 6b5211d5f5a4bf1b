"""The latency of many candidates equals that of each; a search within a latency."""

import json

import numpy as np
import pytest

from fbnetv3.arch import ArchError
from fbnetv3.arch.latency_table import (
    Device,
    LatencyError,
    LatencyTable,
    TableWriter,
    load_latency_table,
    shapes_of,
)
from fbnetv3.nars import search
from fbnetv3.nars.algorithm.search_settings import SettingsError, settings_from_dict
from fbnetv3.nars.algorithm.trial_store import TrialsError
from fbnetv3.nars.space.latency_model import LatencyModel, shapes_in
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.test_costs import ODD, candidates_of
from tests.nars.test_space import FBNETV3, SMALL
from tests.nars.toy import FAST

HERE = Device("a phone", "onnxruntime 1.0", 1, 1)
CIFAR = FBNETV3.parent / "cifar10_small.yaml"


def made_up(shape):
    return 1e-3 * (1 + hash((shape.kind, shape.side, *vars(shape.spec).values())) % 1000)


def table_for(space, num_classes=1000):
    return LatencyTable(HERE, {shape: made_up(shape) for shape in shapes_in(space, num_classes)})


@pytest.mark.parametrize("num_classes", [10, 0])
@pytest.mark.parametrize("space", [load_space(CIFAR), space_from_dict(ODD)], ids=["cifar10_small", "odd"])
def test_equal_to_that_of_each(space, num_classes):
    table = table_for(space, num_classes)
    candidates = candidates_of(space, 300)
    found, networks = LatencyModel(space, table, num_classes)(candidates), 0
    for candidate, ms in zip(candidates, found, strict=True):
        try:
            assert ms == pytest.approx(table.of(space.arch(candidate, "x"), num_classes), rel=1e-12)
            networks += 1
        except ArchError:
            assert ms == np.inf
    assert networks > 30


def test_every_block_of_table_2_is_known_beforehand():
    space = load_space(FBNETV3)
    known = set(shapes_in(space))
    assert len(known) == 16_934
    for candidate in candidates_of(space, 60):
        assert known.issuperset(shapes_of(space.arch(candidate, "x")))


def test_no_candidates_have_no_latency():
    space = load_space(CIFAR)
    assert LatencyModel(space, table_for(space))(np.zeros((0, len(space)), int)).shape == (0,)


def test_a_table_that_lacks_a_block():
    space = load_space(CIFAR)
    table = LatencyTable(HERE, {})
    with pytest.raises(LatencyError, match=r"measure_net\.py --space"):
        LatencyModel(space, table)(candidates_of(space, 3))


def depth(candidate, epochs):
    """Deeper is better, whatever it costs."""
    return [sum(candidate[f"s{i}_repeat"] for i in range(2, 6)) * epoch / epochs for epoch in range(1, epochs + 1)]


@pytest.fixture
def table_file(tmp_path):
    with TableWriter(tmp_path / "table.jsonl", HERE) as writer:
        for shape in shapes_in(load_space(CIFAR), 10):
            writer.block(shape, shape.side * shape.spec.in_channels / 1e4)
    return tmp_path / "table.jsonl"


def test_a_search_within_a_latency(table_file, tmp_path):
    space = load_space(CIFAR)
    usual = LatencyModel(space, load_latency_table(table_file), 10)(candidates_of(space, 2000))
    fast, slow = (round(float(ms), 4) for ms in np.quantile(usual, [0.02, 0.5]))
    settings = {"executor": "serial", "predictor": FAST, "num_classes": 10, "epochs": 2, "rounds": 2, "batch": 8}
    trained = search(space, depth, tmp_path / "out", pool=300, **settings)
    result = search(  # trains nothing
        space,
        depth,
        tmp_path / "out",
        pool=300,
        resume=True,
        latency=str(table_file),
        budgets=[{"latency_ms": fast}, {"latency_ms": slow}],
        **settings,
    )
    assert [trial.number for trial in result.trials] == [trial.number for trial in trained.trials]
    found = result.found
    assert [result.name for result in found] == [f"latency_ms_{fast:.6g}", f"latency_ms_{slow:.6g}"]
    for result, most in zip(found, (fast, slow), strict=True):
        assert result.columns["latency_ms"] <= most
        about = json.loads(result.emitted.provenance.read_text())
        assert about["columns"]["latency_ms"] == result.columns["latency_ms"]
    assert found[0].columns["latency_ms"] > 0.8 * fast
    assert found[1].predicted > found[0].predicted


@pytest.mark.parametrize(
    ("space", "latency", "error"),
    [
        (CIFAR, 3, SettingsError),
        (CIFAR, "missing.jsonl", LatencyError),
        (SMALL, "table.jsonl", SettingsError),
        (FBNETV3, "table.jsonl", LatencyError),
    ],
)
def test_latencies_that_make_no_sense(space, latency, error, table_file):
    space = space_from_dict(space) if isinstance(space, dict) else load_space(space)
    latency = str(table_file) if latency == "table.jsonl" else latency
    with pytest.raises(error):
        settings_from_dict({"latency": latency}).constraints_in(space)


def test_a_table_that_decides_what_is_tried_may_not_change(table_file, tmp_path):
    settings = {"executor": "serial", "predictor": FAST, "num_classes": 10, "epochs": 2, "rounds": 1, "batch": 4}
    settings |= {"pool": 50, "constraints": {"latency_ms": 5}, "latency": str(table_file)}
    search(CIFAR, depth, tmp_path / "out", **settings)
    with table_file.open("a") as f:
        f.write(table_file.read_text().splitlines()[-1] + "\n")
    with pytest.raises(TrialsError, match="another latency"):
        search(CIFAR, depth, tmp_path / "out", resume=True, **settings)
