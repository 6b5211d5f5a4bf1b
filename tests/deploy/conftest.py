"""The digits network, and its exports, each made once."""

import pytest

from fbnetv3.data import build_dataset
from fbnetv3.deploy import classifier_export
from fbnetv3.model_zoo.pretrained import from_name
from tests.tools.conftest import tool  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def digits():
    """The trained network for handwritten digits that comes along."""
    return from_name("digits/fbnetv3_digits")


@pytest.fixture(scope="session")
def held_out():
    """Digits that it has not seen, and what they are."""
    data = build_dataset("digits", "", "val")
    images, targets = zip(*(data[index] for index in range(40)), strict=True)
    return list(images), list(targets)


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory):
    """`exported("onnx")` is the folder with the digits network in that format."""
    made = {}

    def export(format):
        if format == "executorch":
            try:
                import executorch.runtime  # noqa: F401
            except ImportError as error:
                pytest.skip(f"ExecuTorch does not run here: {error}")
        if format not in made:
            folder = tmp_path_factory.mktemp("exported") / format
            made[format] = classifier_export(
                digits.model, digits.preprocessing, digits.classes, folder, format=format, name=digits.name
            )
        return made[format].folder

    return export
