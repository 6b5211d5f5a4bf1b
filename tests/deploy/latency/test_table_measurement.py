"""Latency tables are filled, resumed after an interrupt, and compared with measured networks."""

import pytest
from scipy.stats import spearmanr

from fbnetv3.arch import get_arch
from fbnetv3.arch.latency_table import LatencyError, LatencyTable, block_shapes, load_latency_table
from fbnetv3.deploy.latency.table_measurement import describe_device, evaluate_table, fill_table
from fbnetv3.errors import UsageError

TINY = get_arch("fbnetv3_a0_cifar")


def test_an_unknown_runtime():
    with pytest.raises(UsageError, match="did you mean torch"):
        describe_device("torhc")


def test_a_table_is_filled_and_resumed(tmp_path):
    device, path = describe_device("onnxruntime", name="this machine"), tmp_path / "t.jsonl"
    shapes = list(dict.fromkeys(block_shapes(TINY, 10)))
    steps = []

    def interrupt(kind, done, total):
        steps.append((kind, done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_table(path, device, shapes, [TINY], num_classes=10, progress=interrupt)
    assert len(load_latency_table(path).blocks) == 3
    steps.clear()
    table = fill_table(
        path, device, shapes, [TINY], num_classes=10, progress=lambda *step: steps.append(step)
    )
    assert steps[0] == ("blocks", 1, len(shapes) - 3) and steps[-1] == ("networks", 1, 1)
    assert set(table.blocks) == set(shapes) and table.predict(TINY, 10) > 0
    num_lines = path.read_text().count("\n")
    assert fill_table(path, device, shapes, [TINY], num_classes=10) == table
    assert path.read_text().count("\n") == num_lines
    fill_table(path, device, shapes[:2], num_classes=10, remeasure=True)
    assert path.read_text().count("\n") == num_lines + 2


@pytest.fixture
def networks():
    return [get_arch(f"fbnetv3_{name}_cifar") for name in ("a0", "a", "b", "g")]


@pytest.fixture
def table(networks):
    shapes = dict.fromkeys(shape for arch in networks for shape in block_shapes(arch, 10))
    device = describe_device("onnxruntime", name="this machine")
    return LatencyTable(device, {shape: 0.1 + i / 1e3 for i, shape in enumerate(shapes)})


def test_predictions_are_compared_with_measurements(table, networks, monkeypatch):
    factors = dict(zip([arch.name for arch in networks], (1.0, 2.0, 0.8, 1.0), strict=True))
    monkeypatch.setattr(
        "fbnetv3.deploy.latency.table_measurement._network_latency",
        lambda runtime, arch, num_classes, batch: factors[arch.name] * table.predict(arch, num_classes),
    )
    quality = evaluate_table(table, networks, 10)
    predicted = [table.predict(arch, 10) for arch in networks]
    measured = [ms * factor for ms, factor in zip(predicted, factors.values(), strict=True)]
    assert quality.num_networks == 4
    assert quality.rank_correlation == pytest.approx(spearmanr(predicted, measured)[0])
    assert 0.1 < quality.rank_correlation < 0.99
    assert quality.median_error == pytest.approx((0 + 0.25) / 2)
    assert quality.max_error == pytest.approx(0.5)


def test_networks_are_measured(table, networks):
    lines = []
    evaluate_table(table, networks[:2], 10, log=lines.append)
    assert len(lines) == 2 and "measured" in lines[0]


def test_a_table_that_cannot_be_evaluated(networks, tmp_path):
    empty_table = fill_table(tmp_path / "other.jsonl", describe_device("onnxruntime", 2), [])
    with pytest.raises(LatencyError, match="no conv"):
        evaluate_table(empty_table, networks, 10)
