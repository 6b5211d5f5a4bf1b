"""Every runtime gives the network's logits; networks and exported folders are measured in their own process."""

import json
import shutil
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

from fbnetv3.arch import get_arch
from fbnetv3.deploy import FORMATS
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.latency.benchmark import build_runtime, measure_exported, measure_network, runtime_names
from fbnetv3.deploy.latency.table_measurement import describe_device
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.modeling import build_network
from tests.deploy.conftest import skip_unless_it_runs

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


def logits_of(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("name", runtime_names())
def test_every_runtime_gives_the_networks_logits(name, tiny, images):
    if name != "torch":
        skip_unless_it_runs("onnx" if name == "onnxruntime" else name)
    runtime = build_runtime(name, tiny, (1, 1, 32, 32))
    images = images[:1, :1]
    expected = logits_of(tiny, images)
    assert np.abs(runtime.run(images) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_a_batch_split_among_threads(count, network, images, two_threads):
    runtime = build_runtime("onnxruntime", network, (1, 3, 32, 32))
    logits = runtime.run(images[:count])
    assert logits.shape == (count, 10)
    if count:
        expected = logits_of(network, images[:count])
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_file_deleted_before_its_threads_are_started(exported, tmp_path, two_threads):
    folder = shutil.copytree(exported("onnx"), tmp_path / "copy")
    runtime = OnnxRuntime(folder / "model.onnx")
    batch = np.zeros((4, 1, 32, 32), np.float32)
    shutil.rmtree(folder)
    assert runtime.run(batch[:1]).shape == (1, 10)
    with pytest.raises(ExportError, match=r"model\.onnx: onnxruntime .* cannot read it"):
        runtime.run(batch)


def test_torch_runs_an_optimized_copy(network, images):
    before = [name for name, _ in network.named_modules()]
    expected = logits_of(network, images)
    logits = TorchRuntime(network, optimize=True).run(images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert [name for name, _ in network.named_modules()] == before


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_network(runtime):
    measurement = measure_network(runtime, TINY, num_classes=10, batch=2, seconds=0.05, warmup=0.01)
    assert measurement.resolution == 32 and measurement.runtime.startswith(runtime)
    assert measurement.timing.median > 0 and measurement.peak_memory_bytes > 1e6


def test_an_exported_folder(exported):
    measurement = measure_exported(exported("onnx"), batch=3, seconds=0.05, warmup=0.01)
    assert measurement.resolution == 32 and measurement.timing.calls >= 10
    with pytest.raises(UsageError, match="takes batches of 1, not 3"):
        measure_exported(exported("executorch"), batch=3)
    with pytest.raises(ExportError, match="no such folder"):
        measure_exported("nothing/there")


def test_an_exported_folder_of_any_size(exported, tmp_path):
    folder = shutil.copytree(exported("onnx"), tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["input"]["shape"] = [None, 1, None, None]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert measure_exported(folder, seconds=0.05, warmup=0.01).resolution == 32


def test_an_exported_detector(exported, tmp_path):
    folder = shutil.copytree(exported("onnx"), tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "task": "detection"}))
    with pytest.raises(UsageError, match="is a detector"):
        measure_exported(folder)


ARCHIVE_FORMAT = """
from fbnetv3.deploy import FORMATS
from fbnetv3.deploy.formats.torch_export_format import TorchExportFormat

@FORMATS.register(name="archive")
class ArchiveFormat(TorchExportFormat):
    pass
"""


def test_a_users_format_is_measured_like_the_others(tool, tmp_path, monkeypatch, request):
    (tmp_path / "archive_format.py").write_text(ARCHIVE_FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: FORMATS.remove("archive"))
    monkeypatch.delitem(sys.modules, "archive_format", raising=False)
    options = ("--import", "archive_format", "--runtime", "archive", "--num-classes", 10, "--batch", 2)
    done = tool("measure_net", "fbnetv3_a0_cifar", *options, "--seconds", 0.05)
    assert done.code == 0, done.err
    assert done.out.splitlines()[3].startswith("fbnetv3_a0_cifar  torch")
    assert describe_device("archive").runtime == f"archive {version('torch')}"


def test_wrong_runtimes():
    with pytest.raises(UsageError, match="did you mean onnxruntime"):
        build_runtime("onnxruntim", nn.Identity(), (1, 3, 8, 8))
    with pytest.raises(UsageError, match="one image at a time"):
        build_runtime("executorch", nn.Identity(), (2, 3, 8, 8))
    with pytest.raises(UsageError, match="did you mean torch"):
        measure_network("torhc", TINY)
