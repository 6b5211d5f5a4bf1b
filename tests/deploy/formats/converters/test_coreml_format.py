"""Core ML packages: their interface, their metadata, and their numbers, by running the graph in torch."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from fbnetv3.deploy import PrecisionSettings, export_classifier, load
from fbnetv3.deploy.formats.converters.coreml_format import CoreMLFormat
from fbnetv3.errors import ExportError
from tests.deploy.formats.converters.mil_interpreter import load_program, run_program

pytest.importorskip("coremltools", reason="pip install coremltools")
on_a_mac = sys.platform == "darwin"


@pytest.fixture(scope="module")
def export(tiny, digits, held_out, tmp_path_factory):
    """The tiny network in a precision."""
    exports = {}

    def export(precision):
        if precision not in exports:
            settings = None
            calibration = digits.labeled_images("train", 8)[0]
            if precision != "float32":
                settings = PrecisionSettings(precision, *held_out, calibration=calibration, max_drop=100)
            folder = tmp_path_factory.mktemp("coreml") / precision
            exports[precision] = export_classifier(
                tiny, digits.preprocessing, digits.classes, folder, format="coreml", precision=settings
            )
        return exports[precision]

    return export


def test_the_package_describes_its_input_output_preprocessing_and_classes(export):
    done = export("float32")
    spec, _ = load_program(done.model)
    ((name, shape, kind),) = [
        (x.name, list(x.type.multiArrayType.shape), x.type.multiArrayType.dataType)
        for x in spec.description.input
    ]
    assert (name, shape, kind) == ("images", [1, 1, 32, 32], 65568)  # ArrayFeatureType.FLOAT32
    (output,) = spec.description.output
    assert (output.name, list(output.type.multiArrayType.shape)) == ("logits", [1, 10])
    metadata = spec.description.metadata.userDefined
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing == json.loads((done.folder / "preprocessing.json").read_text())


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("float16", 4e-3), ("int8", 0.05)])
def test_the_graph_gives_the_logits_of_the_network(precision, tolerance, export, tiny):
    _, function = load_program(export(precision).model)
    torch.manual_seed(0)
    for x in torch.randn(4, 1, 1, 32, 32):
        with torch.no_grad():
            expected = tiny(x)
            logits = run_program(function, x)
        difference = float((logits - expected).abs().max() / expected.abs().max())
        assert difference < tolerance and (precision == "float32" or difference > 1e-5)


def test_lower_precisions_are_smaller(export):
    sizes = {name: weight_bytes(export(name)) for name in ("float32", "float16", "int8")}
    assert sizes["float16"] < 0.52 * sizes["float32"] and sizes["int8"] < 0.52 * sizes["float32"]


def weight_bytes(done):
    return (done.model / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size


@pytest.mark.skipif(on_a_mac, reason="Core ML runs on macOS")
def test_elsewhere_the_manifest_says_that_the_package_was_not_run(export):
    done = export("float32")
    assert done.manifest.verification == {"not_run": "Core ML runs on macOS"}
    assert all(
        name.startswith("model.mlpackage/") or name.endswith(".json") for name in done.manifest.files
    )
    sizes = [entry["bytes"] for name, entry in done.manifest.files.items() if "mlpackage" in name]
    assert CoreMLFormat().model_bytes(done.model) == sum(sizes)
    with pytest.raises(ExportError, match=r"model\.mlpackage: cannot run here: Core ML runs on macOS"):
        load(done.folder)


def test_a_changed_package_is_named(export, tmp_path):
    folder = shutil.copytree(export("float32").folder, tmp_path / "copy")
    weights = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"weights/weight\.bin: corrupt .*: copy the whole folder again"):
        load(folder)
    shutil.rmtree(folder / "model.mlpackage")
    with pytest.raises(ExportError, match=r"model\.mlpackage/.*: cannot be read .No such file"):
        load(folder)


@pytest.mark.skipif(not on_a_mac, reason="Core ML runs on macOS")
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_core_ml_gives_the_logits_of_the_network(precision, export, tiny):
    x = np.random.default_rng(0).standard_normal((3, 1, 32, 32), np.float32)
    with torch.no_grad():
        expected = tiny(torch.from_numpy(x)).numpy()
    logits = load(export(precision).folder).runtime.run(x)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
