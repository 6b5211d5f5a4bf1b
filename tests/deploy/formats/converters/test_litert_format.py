"""LiteRT files: names and layout of the input, float16 and int8."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from fbnetv3.deploy import ClassifierPredictor, PrecisionSettings, TorchRuntime, export_classifier, load

pytest.importorskip("litert_torch", reason="pip install 'fbnetv3[converters]'")
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="pip install 'fbnetv3[converters]'")
pytest.importorskip("ai_edge_quantizer", reason="pip install 'fbnetv3[converters]'")


@pytest.fixture(scope="module")
def settings(digits, held_out):
    calibration = digits.labeled_images("train", 16)[0]
    return PrecisionSettings("int8", held_out[0], calibration=calibration, min_agreement=0)


@pytest.fixture(scope="module")
def export(tiny, digits, settings, tmp_path_factory):
    """The tiny network in a precision."""

    def export(precision):
        folder = tmp_path_factory.mktemp(precision) / "out"
        reduced = None if precision == "float32" else replace(settings, precision=precision)
        return export_classifier(
            tiny, digits.preprocessing, digits.classes, folder, format="litert", precision=reduced
        )

    return export


def test_input_and_output_have_names_and_the_layout_of_torch(exported):
    model = interpreter.Interpreter(str(exported("litert") / "model.tflite"))
    assert model.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
    (details,) = model.get_input_details()
    assert details["shape"].tolist() == [1, 1, 32, 32] and details["dtype"] is np.float32


def test_float16_has_half_the_size_and_nearly_the_same_logits(export, tiny, digits, settings):
    done = export("float16")
    result = done.manifest.verification["float16"]
    assert result["bytes_float16"] == done.model.stat().st_size < 0.65 * result["bytes_float32"]
    logits = load(done.folder).logits(settings.images)
    expected = ClassifierPredictor(TorchRuntime(tiny), digits.preprocessing, digits.classes).logits(
        settings.images
    )
    # float16 has 11 bits: a relative rounding error of at most 2 ** -11 for each weight
    assert 0 < np.abs(logits - expected).max() < 8 * 2**-11 * np.abs(expected).max()


def test_int8_computes_all_layers_but_the_first_in_integers(export, tiny, digits, settings):
    done = export("int8")
    types = Counter(layer_types(done.model))
    num_layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in tiny.modules())
    assert sum(types.values()) == num_layers
    assert set(types) == {np.int8, np.float32} and 0 < types[np.float32] < num_layers / 3
    logits = load(done.folder).logits(settings.images)
    expected = ClassifierPredictor(TorchRuntime(tiny), digits.preprocessing, digits.classes).logits(
        settings.images
    )
    assert np.mean((logits - expected) ** 2) / expected.var() < 0.03


def layer_types(path):
    """Return the type of the input of each layer with weights, in their order."""
    model = interpreter.Interpreter(str(path), experimental_preserve_all_tensors=True)
    tensors = {tensor["index"]: tensor["dtype"] for tensor in model.get_tensor_details()}
    layers = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return [tensors[op["inputs"][0]] for op in model._get_ops_details() if op["op_name"] in layers]
