"""Triton models: the configuration is of Triton's schema, and describes the file beside it."""

import json
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from fbnetv3.deploy import export_classifier, load
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.formats.triton_format import build_triton_config


@pytest.fixture(scope="module")
def repository(digits, tmp_path_factory):
    """A model repository with the digits network of a fixed size, and of any size."""
    folder = tmp_path_factory.mktemp("repository")
    for name, any_size in {"digits": False, "digits_any_size": True}.items():
        arguments = digits.model, digits.preprocessing, digits.classes, folder / name
        export_classifier(*arguments, format="triton", any_size=any_size, name="digits")
    return folder


def parse_config(text):
    """Parse a configuration by Triton's schema, which refuses unknown fields and wrong types."""
    client = find_spec("tritonclient")
    if client is None:
        pytest.skip("pip install --no-deps tritonclient")
    # Only the schema: the rest of the client needs more packages
    file = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = spec_from_file_location("model_config_pb2", file)
    schema = module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse(text, schema.ModelConfig())


@pytest.mark.parametrize(("name", "side"), [("digits", 32), ("digits_any_size", -1)])
def test_the_configuration_describes_the_model(repository, name, side):
    config = parse_config((repository / name / "config.pbtxt").read_text())
    (model_input,), (output,) = config.input, config.output
    assert config.platform == "onnxruntime_onnx" and config.name == ""  # the folder's
    assert config.max_batch_size == 16 and config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert (model_input.name, list(model_input.dims)) == ("images", [1, side, side])
    assert (output.name, list(output.dims), output.label_filename) == ("logits", [10], "labels.txt")
    types = model_input.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert model_input.data_type == output.data_type == types["TYPE_FP32"].number


def test_the_files_of_a_model(repository, digits):
    """Triton wants the versions in folders of numbers, and a line per class."""
    folder = repository / "digits"
    manifest = json.loads((folder / "manifest.json").read_text())
    own = {"1/model.onnx", "config.pbtxt", "labels.txt"}
    assert manifest["files"].keys() == own | {"classes.json", "preprocessing.json"}
    assert (folder / "labels.txt").read_text().splitlines() == list(digits.classes)


def test_the_largest_batch_of_the_configuration_runs(repository):
    runtime = OnnxRuntime(repository / "digits" / "1" / "model.onnx")
    assert runtime.run(np.zeros((16, 1, 32, 32), np.float32)).shape == (16, 10)


def test_the_folder_is_an_exported_folder(repository, held_out):
    predictions = load(repository / "digits")(held_out[0][:8])
    assert [best.label for best, *_ in predictions] == [str(target) for target in held_out[1][:8]]


def test_a_configuration_by_hand():
    """As in Triton's documentation of model configurations: dimensions without the batch, -1 for dynamic ones."""
    value = {"name": "x", "type": "float32"}
    text = build_triton_config({**value, "shape": [None, 3, None, 7]}, {**value, "shape": [None, 4]})
    assert "dims: [ 3, -1, 7 ]" in text and "dims: [ 4 ]" in text and "max_batch_size: 16\n" in text
