"""The digits network and its exports, each created once."""

import pytest

from fbnetv3.data import build_dataset
from fbnetv3.deploy import export_classifier
from fbnetv3.model_zoo.pretrained import load_classifier_from_name
from tests.tools.conftest import tool  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def digits():
    """The trained network for handwritten digits that ships with the package."""
    return load_classifier_from_name("digits/fbnetv3_digits")


@pytest.fixture(scope="session")
def held_out():
    """Digits that it was not trained on, and their targets."""
    dataset = build_dataset("digits", "", "val")
    images, targets = zip(*(dataset[index] for index in range(40)), strict=True)
    return list(images), list(targets)


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory):
    """`exported("onnx")` is the folder of the digits network in that format."""
    exports = {}

    def export(format):
        if format == "executorch":
            try:
                import executorch.runtime  # noqa: F401
            except ImportError as error:
                pytest.skip(f"ExecuTorch does not run here: {error}")
        if format == "openvino":
            pytest.importorskip("openvino", reason="OpenVINO is optional: pip install '.[export]'")
        if format not in exports:
            folder = tmp_path_factory.mktemp("exported") / format
            exports[format] = export_classifier(
                digits.model, digits.preprocessing, digits.classes, folder, format=format, name=digits.name
            )
        return exports[format].folder

    return export
