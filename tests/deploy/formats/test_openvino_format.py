"""OpenVINO's files, and OpenVINO as a runtime: it computes in the type that was asked for, and only in that."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from fbnetv3.data import Preprocessing
from fbnetv3.deploy import PrecisionSettings, export_classifier, load
from fbnetv3.deploy.formats.openvino_format import OpenVinoRuntime
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import ExportError

openvino = pytest.importorskip("openvino", reason="OpenVINO is optional: pip install '.[export]'")

# Relative rounding error of bfloat16, which has 8 significant bits
BFLOAT16_ROUNDING = 2**-9


@pytest.fixture(scope="module")
def inputs(digits, held_out):
    return torch.stack([digits.preprocessing.transform()(image) for image in held_out[0]]).numpy()


@pytest.fixture(scope="module")
def expected(digits, inputs):
    with torch.no_grad():
        return digits.model(torch.from_numpy(inputs)).numpy()


def export(digits, output, settings):
    return export_classifier(
        digits.model, digits.preprocessing, digits.classes, output, format="openvino", precision=settings
    )


def test_float32_is_computed_in_float32(exported, inputs, expected):
    """OpenVINO's default on processors with bfloat16 instructions is bfloat16."""
    predictor = load(exported("openvino"))
    assert predictor.runtime.name.startswith("openvino 20")
    assert relative_difference(predictor.runtime.run(inputs), expected) < 1e-5


def test_bfloat16_halves_the_weights_and_keeps_the_classes(digits, held_out, inputs, expected, tmp_path):
    done = export(digits, tmp_path / "out", PrecisionSettings("bfloat16", *held_out))
    result = done.manifest.verification["bfloat16"]
    assert done.manifest.precision == "bfloat16" and result["agreement"] == 100
    files = done.manifest.files
    assert result["bytes_bfloat16"] == files["model.xml"]["bytes"] + files["model.bin"]["bytes"]
    num_weights = sum(
        module.weight.numel() for module in digits.model.modules() if isinstance(module, nn.Conv2d)
    )
    assert 2 * num_weights < files["model.bin"]["bytes"] < 2.2 * num_weights
    difference = relative_difference(load(done.folder).runtime.run(inputs), expected)
    assert difference < 20 * BFLOAT16_ROUNDING  # many layers
    in_float32 = load(done.folder, "openvino-float32").runtime.run(inputs)
    # Even with float32 arithmetic, the weights are rounded
    assert BFLOAT16_ROUNDING / 10 < relative_difference(in_float32, expected) < 20 * BFLOAT16_ROUNDING


def test_auto_computes_in_float32_where_bfloat16_is_slow(digits, held_out, inputs, tmp_path, monkeypatch):
    folder = export(digits, tmp_path / "out", PrecisionSettings("bfloat16", *held_out)).folder
    in_float32 = load(folder, "openvino-float32").runtime.run(inputs)
    in_bfloat16 = load(folder, "openvino").runtime.run(inputs)
    assert (in_float32 != in_bfloat16).any()
    run = OpenVinoRuntime.run

    def run_slowly(self, batch):
        if self.precision == "bfloat16":
            time.sleep(0.05)
        return run(self, batch)

    monkeypatch.setattr(OpenVinoRuntime, "run", run_slowly)
    assert (load(folder, "auto").runtime.run(inputs) == in_float32).all()


MASKED = """
import sys
import numpy as np
from fbnetv3.deploy import load
from fbnetv3.errors import ExportError
folder, inputs, outputs = sys.argv[1:]
batch = np.load(inputs)
np.save(outputs, load(folder, "auto").runtime.run(batch))
try:
    print(len(load(folder).runtime.run(batch)))
except ExportError as error:
    print(error)
"""


def test_too_few_results_are_an_error(exported, inputs, monkeypatch):
    runtime = load(exported("openvino")).runtime
    monkeypatch.setattr(runtime._model.get(), "run", lambda batch: np.zeros((0, 10), np.float32))
    with pytest.raises(
        ExportError, match=r"openvino .* returned logits of 0 instead of 3 images: .* 'openvino-float32'"
    ):
        runtime.run(inputs[:3])


def test_auto_on_processors_without_bfloat16(digits, held_out, inputs, expected, tmp_path):
    """There, OpenVINO 2026.4 fails or returns empty arrays: both are errors, and `auto` computes in float32."""
    folder = export(digits, tmp_path / "out", PrecisionSettings("bfloat16", *held_out)).folder
    np.save(tmp_path / "inputs.npy", inputs)
    done = subprocess.run(
        [sys.executable, "-c", MASKED, folder, tmp_path / "inputs.npy", tmp_path / "outputs.npy"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert relative_difference(np.load(tmp_path / "outputs.npy"), expected) < 20 * BFLOAT16_ROUNDING
    assert any(text in done.stdout for text in (str(len(inputs)), "instead of", "cannot run this network"))


@pytest.mark.parametrize("reduce_range", [False, True])
def test_int8_keeps_the_classes_in_a_third_of_the_size(digits, held_out, reduce_range, tmp_path):
    pytest.importorskip("nncf", reason="NNCF is optional: pip install '.[converters]'")
    calibration = digits.labeled_images("train", 64)[0]
    settings = PrecisionSettings("int8", *held_out, calibration=calibration, reduce_range=reduce_range)
    done = export(digits, tmp_path / "out", settings)
    result = done.manifest.verification["int8"]
    assert result["agreement"] == 100 and result["top1_int8"] == result["top1_float32"] > 95
    weights = done.manifest.files["model.bin"]["bytes"]
    assert weights < 0.34 * result["bytes_float32"]
    graph = openvino.Core().read_model(str(done.model))
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    integers = [c for c in constants if c.get_element_type() == openvino.Type.i8]
    sizes = [module.weight.numel() for module in digits.model.modules() if isinstance(module, nn.Conv2d)]
    # The first layers, with 1% of the weights, stay float32
    assert len(integers) == sum(np.cumsum(sizes) > 0.01 * sum(sizes)) > len(sizes) / 2
    # NNCF leaves depthwise convolutions, which sum few products and have 5 axes, at 8 bits
    dense = [c for c in integers if len(c.get_output_shape(0)) == 4]
    assert max(np.abs(c.get_data().astype(int)).max() for c in dense) == (64 if reduce_range else 127)


def test_any_batch_and_any_size(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    done = export_classifier(
        model, Preprocessing(16, 16), list("abcd"), tmp_path / "out", format="openvino", any_size=True
    )
    assert done.manifest.input["shape"] == [None, 3, None, None]
    runtime = load(done.folder).runtime
    for shape in ((1, 3, 16, 16), (5, 3, 24, 20)):
        x = torch.randn(shape)
        assert relative_difference(runtime.run(x.numpy()), model(x).detach().numpy()) < 1e-5


def test_a_batch_is_split_among_threads(exported, inputs, expected):
    torch.set_num_threads(2)
    try:
        runtime = load(exported("openvino")).runtime
    finally:
        torch.set_num_threads(1)
    for count in (1, 2, 7):
        assert relative_difference(runtime.run(inputs[:count]), expected[:count]) < 1e-5


def test_threads_may_share_a_runtime_and_processes_receive_it(exported, inputs, expected):
    runtime = load(exported("openvino")).runtime
    received = pickle.loads(pickle.dumps(runtime))
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda i: runtime.run(inputs[i : i + 1]), range(len(inputs))))
    assert relative_difference(np.concatenate(outputs), expected) < 1e-5
    assert relative_difference(received.run(inputs[:2]), expected[:2]) < 1e-5


def test_a_corrupt_file_is_named(exported, tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("<net")
    with pytest.raises(ExportError, match=r"model.xml: openvino 20.* cannot read it; export it again"):
        OpenVinoRuntime(path)
