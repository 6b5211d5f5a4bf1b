"""The digits network and its exports, each created once."""

import pytest

from fbnetv3.data import build_dataset
from fbnetv3.deploy import export_classifier
from fbnetv3.deploy.web.browser_runtime import SOURCE_VARIABLE, fetch_browser_runtime
from fbnetv3.errors import MissingPackageError
from fbnetv3.model_zoo.pretrained import load_classifier_from_name
from fbnetv3.utils.downloads import cache_dir
from tests.tools.conftest import tool  # noqa: F401 - a fixture

USER_CACHE = cache_dir()  # tests have caches of their own


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
def browser_runtime():
    """ONNX Runtime for browsers, from the user's cache or from npm; all exports of the session use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FBNETV3_CACHE", str(USER_CACHE))
        try:
            package = fetch_browser_runtime()
        except MissingPackageError as error:
            pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SOURCE_VARIABLE, str(package))
        yield package


@pytest.fixture(scope="session")
def exported(digits, tmp_path_factory, request):
    """`exported("onnx")` is the folder of the digits network in that format."""
    exports = {}

    def export(format):
        if format == "executorch":
            try:
                import executorch.runtime  # noqa: F401
            except ImportError as error:
                pytest.skip(f"ExecuTorch does not run here: {error}")
        if format == "web":
            request.getfixturevalue("browser_runtime")
        if format not in exports:
            folder = tmp_path_factory.mktemp("exported") / format
            exports[format] = export_classifier(
                digits.model, digits.preprocessing, digits.classes, folder, format=format, name=digits.name
            )
        return exports[format].folder

    return export
