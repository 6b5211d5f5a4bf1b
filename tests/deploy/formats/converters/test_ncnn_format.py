"""NCNN files: names, any size, float16, and weights that cannot be read."""

import shutil

import numpy as np
import pytest
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.deploy import PrecisionSettings, export_classifier, load
from fbnetv3.deploy.formats.converters.ncnn_format import NCNNFormat
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import ExportError

pytest.importorskip("ncnn", reason="pip install 'fbnetv3[converters]'")
pytest.importorskip("pnnx", reason="pip install 'fbnetv3[converters]'")


def test_input_and_output_have_names(exported):
    lines = (exported("ncnn") / "model.param").read_text().splitlines()
    assert lines[2].split()[:5] == ["Input", "images", "0", "1", "images"]
    assert "logits" in lines[-1].split()


def test_any_size(tiny, digits, tmp_path):
    done = export_classifier(
        tiny, digits.preprocessing, digits.classes, tmp_path / "out", format="ncnn", any_size=True
    )
    assert done.manifest.input["shape"] == [1, 1, None, None]
    runtime = load(done.folder).runtime
    for shape in ((1, 1, 32, 32), (2, 1, 48, 40), (1, 1, 65, 33)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(runtime.run(x.numpy()), tiny(x).numpy()) < 1e-4


def test_float16_has_half_the_size(tiny, digits, held_out, tmp_path):
    settings = PrecisionSettings("float16", *held_out, max_drop=100)
    done = export_classifier(
        tiny, digits.preprocessing, digits.classes, tmp_path / "out", format="ncnn", precision=settings
    )
    result = done.manifest.verification["float16"]
    sizes = [(done.folder / name).stat().st_size for name in ("model.param", "model.bin")]
    assert result["bytes_float16"] == sum(sizes) < 0.65 * result["bytes_float32"]
    assert set(done.manifest.files) == {"model.param", "model.bin", "preprocessing.json", "classes.json"}
    x = np.random.default_rng(0).standard_normal((4, 1, 32, 32), np.float32)
    with torch.no_grad():
        expected = tiny(torch.from_numpy(x)).numpy()
    difference = relative_difference(load(done.folder).runtime.run(x), expected)
    assert 1e-5 < difference < 0.01  # weights or maps have 11 bits


@pytest.mark.parametrize("length", [0, 100, 100_000])
def test_corrupt_weights(length, exported, tmp_path):
    folder = shutil.copytree(exported("ncnn"), tmp_path / "copy")
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ExportError, match=r"model\.bin: ncnn .* cannot read it; export it again"):
        NCNNFormat().open(folder / "model.param")


def test_a_network_that_pnnx_cannot_convert(tmp_path, monkeypatch):
    monkeypatch.setattr("pnnx.EXEC_PATH", shutil.which("false"))
    with pytest.raises(ExportError, match="pnnx cannot export this network: exit status 1"):
        export_classifier(
            torch.nn.Flatten(),
            Preprocessing(2, 2, (0.5,), (0.5,)),
            list("abcd"),
            tmp_path / "out",
            format="ncnn",
        )
    assert not (tmp_path / "out").exists()
