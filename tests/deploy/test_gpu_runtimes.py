"""On a GPU, runtimes give the CPU's logits, and a clock waits for what was launched."""

import time

import numpy as np
import pytest
import torch

from fbnetv3.deploy import TorchRuntime, load
from fbnetv3.deploy.latency.timing import read_clock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
BATCH = np.random.default_rng(0).standard_normal((5, 1, 32, 32), np.float32)


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("optimize", [False, True])
def test_networks(digits, optimize):
    logits = TorchRuntime(digits.model, optimize=optimize, device="cuda").run(BATCH)
    np.testing.assert_allclose(logits, TorchRuntime(digits.model).run(BATCH), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("format", ["onnx", "torch-export", "torchscript"])
def test_exports(exported, format):
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime is for CPUs only")
    predictor = load(exported(format), device="cuda")
    assert predictor.runtime.name.endswith(" on cuda")
    expected = load(exported(format)).runtime.run(BATCH)
    np.testing.assert_allclose(predictor.runtime.run(BATCH), expected, rtol=1e-3, atol=1e-3)


def test_the_clock_waits_for_the_gpu():
    matrix = torch.rand(8192, 8192, device="cuda")
    (matrix @ matrix).sum().item()
    start = read_clock("cuda")
    for _ in range(20):
        matrix @ matrix
    launched = time.perf_counter() - start
    assert read_clock("cuda") - start > 2 * launched
