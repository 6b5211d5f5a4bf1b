"""The device of a runtime: torch's formats and ONNX Runtime compute on GPUs, the others on the CPU only."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fbnetv3.deploy import TorchRuntime, load
from fbnetv3.deploy.formats.export_format import FLOAT32, get_format
from fbnetv3.deploy.formats.onnx_format import CUDA_PROVIDER, OnnxRuntime, choose_providers
from fbnetv3.deploy.formats.torch_export_format import TorchExportRuntime
from fbnetv3.deploy.runtime_choice import runtime_openers
from fbnetv3.errors import MissingPackageError, UsageError
from tests.fake_gpu import FakeGpu

BATCH = np.random.default_rng(0).standard_normal((2, 1, 32, 32), np.float32)
CPU_PROVIDER = "CPUExecutionProvider"


def openers(format, runtime, device):
    path = Path("exported") / get_format(format).file_name
    return runtime_openers(get_format(format), path, FLOAT32, runtime, device)


@pytest.mark.parametrize("optimize", [False, True])
def test_a_network_runs_on_a_gpu_and_answers_on_the_cpu(digits, optimize):
    expected = TorchRuntime(digits.model, optimize=optimize).run(BATCH)
    with FakeGpu() as gpu:
        runtime = TorchRuntime(digits.model, optimize=optimize, device="cuda:1")
        gpu.copies.clear()
        logits = runtime.run(BATCH)
    assert gpu.copies == ["pinned", "to the GPU", "to the CPU"]
    np.testing.assert_array_equal(logits, expected)
    assert runtime.name == f"torch {torch.__version__} on cuda:1"


def test_the_network_itself_stays_where_it_is(digits):
    with FakeGpu():
        runtime = TorchRuntime(digits.model, device="cuda")
    assert runtime._model is not digits.model
    assert TorchRuntime(digits.model)._model is digits.model


@pytest.mark.parametrize("format", ["torch-export", "torchscript"])
def test_exports_for_torch_run_on_a_gpu(exported, format, monkeypatch):
    folder = exported(format)
    load_script = torch.jit.load
    # In C++, where nothing stands in for a GPU
    monkeypatch.setattr(torch.jit, "load", lambda path, map_location: load_script(path))
    expected = load(folder).runtime.run(BATCH) if format == "torch-export" else None
    with FakeGpu() as gpu:
        runtime = load(folder, device="cuda").runtime
        gpu.copies.clear()
        logits = runtime.run(BATCH)
    assert gpu.copies == ["pinned", "to the GPU", "to the CPU"]
    assert runtime.name.endswith(" on cuda") and logits.shape == (2, 10)
    if expected is not None:
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_the_device_survives_pickling(digits, exported):
    path = exported("torch-export") / "model.pt2"
    with FakeGpu():
        for runtime in (TorchRuntime(digits.model, device="cuda"), TorchExportRuntime(path, "cuda")):
            assert pickle.loads(pickle.dumps(runtime)).name == runtime.name


def test_a_device_that_is_not_here(digits, exported):
    for call in (
        lambda: TorchRuntime(digits.model, device="cuda:77"),
        lambda: load(exported("torch-export"), device="cuda:77"),
    ):
        with pytest.raises(
            UsageError, match="device 'cuda:77' cannot be used here .*: set it to auto or cpu"
        ):
            call()


@pytest.mark.parametrize("format", ["executorch", "openvino", "aoti", "litert", "coreml", "ncnn"])
def test_formats_that_run_on_the_cpu_only(format):
    """They refuse a GPU that is asked for; with "auto" they use the CPU."""
    name = get_format(format).runtime_package
    others = "onnx, torch-export, torchscript, triton, web"
    with pytest.raises(UsageError) as error:
        openers(format, None, "cuda")
    assert str(error.value) == (
        f"device 'cuda': {get_format(format).file_name} runs in {name} on the CPU only: set it to auto or cpu, or use "
        f"an export to one of the formats {others}"
    )
    (automatic,) = openers(format, None, "auto").values()
    assert automatic.func.__func__ is type(get_format(format)).open and automatic.args[1:] == (FLOAT32,)


def test_a_runtime_that_runs_on_the_cpu_only():
    message = r"device 'cuda': model.onnx runs in openvino on the CPU only: .* or use runtime onnxruntime"
    with pytest.raises(UsageError, match=message):
        openers("onnx", "openvino", "cuda")
    assert list(openers("onnx", "auto", "cuda")) == ["onnxruntime"]
    # With "auto", each runtime uses what it can
    automatic = openers("onnx", "auto", "auto")
    assert list(automatic) == ["onnxruntime", "openvino"]
    assert automatic["onnxruntime"].args[1:] == ("auto",)
    assert automatic["openvino"].args[1:] == (FLOAT32,)


def test_providers_of_onnx_runtime():
    gpu_build, cpu_build = [CUDA_PROVIDER, CPU_PROVIDER], ["AzureExecutionProvider", CPU_PROVIDER]
    only_cpu = [(CPU_PROVIDER, {})]
    assert choose_providers("cpu", gpu_build) == choose_providers("auto", cpu_build) == only_cpu
    for device, index in (("cuda", 0), ("cuda:1", 1), ("auto", 0)):
        (name, options), *others = choose_providers(device, gpu_build)
        assert (name, options["device_id"], others) == (CUDA_PROVIDER, index, only_cpu)


@pytest.mark.parametrize(
    "device, error, message",
    [
        (
            "cuda",
            MissingPackageError,
            "device 'cuda': this onnxruntime is for CPUs only: .*onnxruntime-gpu",
        ),
        ("mps", UsageError, "device 'mps': ONNX Runtime computes on cpu or cuda here"),
        ("gpu", UsageError, "device 'gpu' cannot be used here"),
    ],
)
def test_devices_that_onnx_runtime_cannot_use(exported, device, error, message):
    with pytest.raises(error, match=message):
        load(exported("onnx"), device=device)


def test_a_gpu_that_onnx_runtime_cannot_start(exported, monkeypatch):
    """As where the libraries of CUDA are missing: it then has the provider, but its sessions do not."""
    import onnxruntime

    path = exported("onnx") / "model.onnx"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    with pytest.raises(
        UsageError, match="device 'cuda': onnxruntime .* finds no GPU, or not the libraries"
    ):
        OnnxRuntime(path, "cuda")
    runtime = OnnxRuntime(path, "auto")
    assert runtime.name == f"onnxruntime {onnxruntime.__version__}"
    np.testing.assert_array_equal(runtime.run(BATCH), OnnxRuntime(path).run(BATCH))
