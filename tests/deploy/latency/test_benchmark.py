"""Networks and blocks measured: what runs is what an export runs; tables are filled, and gone on with."""

import json
import mmap
import shutil
import time

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from fbnetv3.arch import get_arch
from fbnetv3.arch.latency_table import LatencyError, LatencyTable, block_shapes, load_latency_table
from fbnetv3.deploy.formats.graph_preparation import export_program, prepare_for_export
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime, write_onnx
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.latency.benchmark import RUNTIMES, build_runtime, measure_exported, measure_network
from fbnetv3.deploy.latency.latency_measurement import build_block, describe_device, evaluate_table, fill_table
from fbnetv3.deploy.latency.onnx_direct import build_onnx_model
from fbnetv3.deploy.latency.timing import MemoryWatch, Timing, device_name, time_calls
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.modeling import build_network

TINY = get_arch("fbnetv3_a0_cifar")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(TINY, num_classes=10).eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((5, 3, 32, 32), np.float32)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def answers(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def test_a_graph_is_the_one_that_an_export_writes(network, tmp_path):
    module = prepare_for_export(network)
    write_onnx(export_program(module, torch.zeros(2, 3, 32, 32), [0]), tmp_path / "exported.onnx")
    written = onnx.load(str(tmp_path / "exported.onnx"))
    direct = onnx.load_from_string(build_onnx_model(module, (1, 3, 32, 32)))

    def layers(model):
        ends = ("Identity", "Flatten", "Reshape")
        return [node.op_type for node in model.graph.node if node.op_type not in ends]

    assert layers(direct) == layers(written)


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_gives_what_the_network_gives(name, network, images):
    runtime = build_runtime(name, network, (1, 3, 32, 32))
    expected = answers(network, images[:1])
    assert np.abs(runtime.run(images[:1]) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["fbnetv3_b", "fbnetv3_a_det"])
def test_every_kind_of_block_and_the_head(name):
    rng = np.random.default_rng(0)
    for shape in {s.kind: s for s in block_shapes(get_arch(name))}.values():
        module = build_block(shape)
        x = rng.standard_normal((2, shape.spec.in_channels, 9, 9), np.float32)
        expected = answers(module, x)
        found = OnnxRuntime(build_onnx_model(prepare_for_export(module), x.shape)).run(x)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_what_is_not_known_is_named():
    with pytest.raises(ExportError, match="GELU"):
        build_onnx_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()), (1, 3, 8, 8))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_a_batch_divided_among_threads(count, network, images, two_threads):
    runtime = build_runtime("onnxruntime", network, (1, 3, 32, 32))
    found = runtime.run(images[:count])
    assert found.shape == (count, 10)
    if count:
        expected = answers(network, images[:count])
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_torch_runs_a_copy_that_is_faster(network, images):
    before = [name for name, _ in network.named_modules()]
    expected = answers(network, images)
    found = TorchRuntime(network, optimize=True).run(images)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert [name for name, _ in network.named_modules()] == before


def test_timing():
    found = time_calls(lambda: time.sleep(0.002), seconds=0.1, warm_up=0.01)
    assert 10 <= found.calls <= 50
    assert 2 <= found.least <= found.median <= found.p90 <= found.p99
    assert found.mean < 20
    assert time_calls(lambda: None, seconds=0, warm_up=0, least_calls=12).calls == 12
    assert Timing(10, 1, 1.2, 1, 2, 2).is_disturbed and not Timing(10, 1, 1.05, 1, 2, 2).is_disturbed


def test_memory_is_what_was_taken_since():
    watch = MemoryWatch()
    with mmap.mmap(-1, 40_000_000) as data:  # pages that the process has not had yet
        data.write(bytes(40_000_000))
        assert 30e6 < watch.peak() < 300e6
    assert device_name()


def test_a_network_in_a_process_of_its_own():
    found = measure_network("onnxruntime", TINY, num_classes=10, batch=2, seconds=0.05, warm_up=0.01)
    assert found.batch == 2 and found.side == 32 and found.runtime.startswith("onnxruntime")
    assert found.timing.median > 0 and found.memory > 1e6


def test_what_was_exported(exported):
    found = measure_exported(exported("onnx"), batch=3, seconds=0.05, warm_up=0.01)
    assert found.side == 32 and found.timing.calls >= 10
    with pytest.raises(UsageError, match="takes 1 image at a time"):
        measure_exported(exported("executorch"), batch=3)
    with pytest.raises(ExportError, match="no such folder"):
        measure_exported("nothing/there")


@pytest.mark.parametrize(("changes", "expected"), [({"input": None}, 32), ({"task": "detection"}, "is a detector")])
def test_what_an_exports_manifest_says(changes, expected, exported, tmp_path):
    folder = shutil.copytree(exported("onnx"), tmp_path / "copy")
    about = json.loads((folder / "manifest.json").read_text())
    if "input" in changes:  # of any size
        changes = {"input": {**about["input"], "shape": [None, 1, None, None]}}
    (folder / "manifest.json").write_text(json.dumps({**about, **changes}))
    if isinstance(expected, int):
        assert measure_exported(folder, seconds=0.05, warm_up=0.01).side == expected
    else:
        with pytest.raises(UsageError, match=expected):
            measure_exported(folder)


def test_runtimes_that_are_none():
    with pytest.raises(UsageError, match="did you mean onnxruntime"):
        build_runtime("onnxruntim", nn.Identity(), (1, 3, 8, 8))
    with pytest.raises(UsageError, match="one image at a time"):
        build_runtime("executorch", nn.Identity(), (2, 3, 8, 8))
    with pytest.raises(UsageError, match="did you mean torch"):
        describe_device("torhc")
    with pytest.raises(UsageError, match="did you mean torch"):
        measure_network("torhc", TINY)


def test_a_table_is_filled_and_gone_on_with(tmp_path):
    device, path = describe_device("onnxruntime", called="here"), tmp_path / "t.jsonl"
    shapes = list(dict.fromkeys(block_shapes(TINY, 10)))
    seen = []

    def interrupted(what, done, total):
        seen.append((what, done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_table(path, device, shapes, [TINY], num_classes=10, watch=interrupted)
    assert len(load_latency_table(path).blocks) == 3
    seen.clear()
    table = fill_table(path, device, shapes, [TINY], num_classes=10, watch=lambda *step: seen.append(step))
    assert seen[0] == ("blocks", 1, len(shapes) - 3) and seen[-1] == ("networks", 1, 1)
    assert set(table.blocks) == set(shapes) and table.predict(TINY, 10) > 0
    lines = path.read_text().count("\n")
    assert fill_table(path, device, shapes, [TINY], num_classes=10) == table
    assert path.read_text().count("\n") == lines
    fill_table(path, device, shapes[:2], num_classes=10, again=True)
    assert path.read_text().count("\n") == lines + 2


def test_predictions_are_compared_with_networks(tmp_path, monkeypatch):
    networks = [get_arch(f"fbnetv3_{name}_cifar") for name in ("a0", "a", "b", "g")]
    shapes = dict.fromkeys(shape for defn in networks for shape in block_shapes(defn, 10))
    table = LatencyTable(
        describe_device("onnxruntime", called="here"), {s: 0.1 + i / 1e3 for i, s in enumerate(shapes)}
    )
    off = dict(zip([defn.name for defn in networks], (1.0, 2.0, 0.8, 1.0), strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(
            "fbnetv3.deploy.latency.latency_measurement._network_ms",
            lambda runtime, defn, num_classes, batch: off[defn.name] * table.predict(defn, num_classes),
        )
        found = evaluate_table(table, networks, 10)
    predicted = [table.predict(defn, 10) for defn in networks]
    measured = [ms * factor for ms, factor in zip(predicted, off.values(), strict=True)]
    assert found.networks == 4
    assert found.rank == pytest.approx(spearmanr(predicted, measured)[0])
    assert 0.1 < found.rank < 0.99
    assert found.median_error == pytest.approx((0 + 0.25) / 2)
    assert found.largest_error == pytest.approx(0.5)
    seen = []
    evaluate_table(table, networks[:2], 10, watch=seen.append)  # measured indeed
    assert len(seen) == 2 and "measured" in seen[0]
    with pytest.raises(UsageError, match="cannot be ranked"):
        evaluate_table(table, networks[:1], 10)
    torch_table = fill_table(tmp_path / "other.jsonl", describe_device("onnxruntime", 2), [])
    with pytest.raises(LatencyError, match="no conv"):
        evaluate_table(torch_table, networks, 10)


def test_a_file_that_has_gone_before_its_threads_are_opened(exported, tmp_path, two_threads):
    folder = shutil.copytree(exported("onnx"), tmp_path / "copy")
    runtime = OnnxRuntime(folder / "model.onnx")
    batch = np.zeros((4, 1, 32, 32), np.float32)
    shutil.rmtree(folder)
    assert runtime.run(batch[:1]).shape == (1, 10)
    with pytest.raises(ExportError, match=r"model\.onnx: onnxruntime .* cannot read it"):
        runtime.run(batch)
