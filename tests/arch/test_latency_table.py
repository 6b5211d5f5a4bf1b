"""Latency tables: round trips, interrupted writers, corrupt files, and how block latencies add up."""

import json
import random

import pytest

from fbnetv3.arch import get_arch
from fbnetv3.arch.latency_table import (
    LatencyError,
    LatencyTable,
    LatencyTableWriter,
    MeasuredDevice,
    block_shapes,
    head_shape,
    load_latency_table,
)
from tests.table2 import random_arch

DEVICE = MeasuredDevice("a phone", "onnxruntime 1.0", 2, 1)
B = get_arch("fbnetv3_b")


def made_up(shape):
    """Return a latency for a block."""
    cost, *_ = shape.spec.cost(shape.side, shape.side) if shape.kind != "head" else (None,)
    return 0.05 + (cost.macs / 1e7 if cost else 0.1)


def written(path, shapes, networks=(), device=DEVICE):
    writer = LatencyTableWriter(path, device)
    for shape in shapes:
        writer.add_block(shape, made_up(shape))
    for arch, ms in networks:
        writer.add_network(arch, 1000, ms)
    return load_latency_table(path)


def test_a_networks_blocks_and_head():
    shapes = block_shapes(B)
    assert len(shapes) == len(B.blocks()) + 1
    assert shapes[0].kind == "conv" and shapes[0].side == 248 and shapes[1].side == 124
    assert shapes[-1] == head_shape(1984, 1000, 1)
    assert len(block_shapes(B, 0)) == len(B.blocks())


def test_round_trip(tmp_path):
    shapes = block_shapes(B)
    table = written(tmp_path / "new" / "table.jsonl", shapes)
    assert table.device == DEVICE
    assert table.predict(B) == pytest.approx(sum(map(made_up, shapes)), abs=1e-4)
    assert len(table.blocks) == len(set(shapes)) < len(shapes)


def test_the_shortest_of_several_measurements_counts(tmp_path):
    shape = block_shapes(B)[0]
    path = tmp_path / "t.jsonl"
    for ms in (0.5, 0.3, 0.9):
        LatencyTableWriter(path, DEVICE).add_block(shape, ms)
    assert load_latency_table(path).block_ms(shape) == 0.3


def test_how_latencies_add_up_is_learned_from_whole_networks(tmp_path):
    rng = random.Random(0)
    networks = [random_arch(rng, f"n{i}") for i in range(12)]
    shapes = [shape for arch in networks for shape in block_shapes(arch)]

    def total_ms(arch):
        parts = block_shapes(arch)
        return 1.2 * sum(map(made_up, parts)) - 0.02 * len(parts)

    few = written(tmp_path / "few.jsonl", shapes, [(arch, total_ms(arch)) for arch in networks[:7]])
    assert (few.fit.scale, few.fit.per_block, few.fit.num_networks) == (1, 0, 7)
    table = written(tmp_path / "t.jsonl", shapes, [(arch, total_ms(arch)) for arch in networks[:9]])
    assert table.fit.scale == pytest.approx(1.2, abs=1e-3)
    assert table.fit.per_block == pytest.approx(-0.02, abs=1e-3)
    for unseen in networks[9:]:
        assert table.predict(unseen) == pytest.approx(total_ms(unseen), rel=1e-3)


def test_a_killed_writers_table_is_read_and_resumed(tmp_path):
    path = tmp_path / "t.jsonl"
    first, second, third = block_shapes(B)[:3]
    written(path, [first, second])
    path.write_bytes(path.read_bytes()[:-7])
    assert set(load_latency_table(path).blocks) == {first}
    assert set(written(path, [third]).blocks) == {first, third}


def test_a_writer_killed_during_the_first_line(tmp_path):
    path = tmp_path / "t.jsonl"
    LatencyTableWriter(path, DEVICE)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LatencyError, match="is empty"):
        load_latency_table(path)
    first = block_shapes(B)[0]
    assert set(written(path, [first]).blocks) == {first}


def test_another_file_is_not_overwritten(tmp_path):
    (tmp_path / "notes").write_text("no newline at the end")
    with pytest.raises(LatencyError, match="is empty"):
        LatencyTableWriter(tmp_path / "notes", DEVICE)
    assert (tmp_path / "notes").read_text() == "no newline at the end"


def test_a_table_of_a_newer_version(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"layout": 2}\n')
    with pytest.raises(LatencyError, match=r"t\.jsonl: was written by a newer version of fbnetv3; update"):
        load_latency_table(tmp_path / "t.jsonl")


def test_tables_of_two_devices_are_not_mixed(tmp_path):
    path = tmp_path / "t.jsonl"
    written(path, block_shapes(B)[:1])
    with pytest.raises(
        LatencyError,
        match=r"was measured on a phone, onnxruntime 1.0, 2 threads, batch 1, but this is .*1 thread",
    ):
        LatencyTableWriter(path, MeasuredDevice("a phone", "onnxruntime 1.0", 1, 1))
    assert len(load_latency_table(path).blocks) == 1


def test_a_block_that_was_not_measured():
    with pytest.raises(LatencyError, match=r"no conv at 248 pixels.*measure_net.py --space"):
        LatencyTable(DEVICE, {}).predict(B)


GOOD = {"layout": 1, "device": "x", "runtime": "y 1", "threads": 1, "batch": 1}


@pytest.mark.parametrize(
    "lines",
    [
        ["no JSON"],
        [{"layout": 1, "device": "x"}],
        [GOOD, {"ms": 1}],
        [GOOD, {"block": "conv", "side": 8, "spec": {}, "ms": 1}],
        [GOOD, {"block": "none", "side": 8, "spec": {}, "ms": 1}],
        [GOOD, {"network": {"name": "x"}, "num_classes": 10, "ms": 1}],
        [GOOD, {"block": "head", "side": 8, "spec": {"in_channels": 1, "out_channels": 2}, "ms": -1}],
        [GOOD, {"block": "head", "side": 8, "spec": {"in_channels": 1, "out_channels": 2}, "ms": "nan"}],
        [GOOD, []],
    ],
)
def test_invalid_tables(lines, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(LatencyError, match=r"t\.jsonl: line \d is not an entry of a latency table"):
        load_latency_table(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(content, tmp_path):
    path = tmp_path / "t.jsonl"
    if content:
        path.write_bytes(content)
    with pytest.raises(LatencyError, match=r"cannot be read.*measure_net\.py"):
        load_latency_table(path)
