"""The digits network and its exports, each created once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.arch import get_arch
from fbnetv3.data import build_dataset
from fbnetv3.deploy import export_classifier
from fbnetv3.deploy.formats.export_format import get_format
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
def tiny(digits, held_out):
    """A block of each kind with random weights, and BatchNorm statistics of the images."""
    torch.manual_seed(0)
    stages = get_arch("fbnetv3_digits").stages
    chosen = tuple(replace(stages[i], rows=stages[i].rows[:2]) for i in (0, 1, 3, 6))
    model = fbnetv3.create_model(
        replace(get_arch("fbnetv3_digits"), name="tiny", stages=chosen), num_classes=10, in_chans=1
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.ones_(module.weight)
    images = torch.stack([digits.preprocessing.transform()(image) for image in held_out[0]])
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def skip_unless_it_runs(format):
    """Skip the test where a format's packages are not installed, or only another operating system runs it."""
    if format == "executorch":
        try:
            import executorch.runtime  # noqa: F401
        except ImportError as error:
            pytest.skip(f"ExecuTorch does not run here: {error}")
    try:
        get_format(format).import_packages()
    except MissingPackageError as error:
        pytest.skip(str(error))
    if reason := get_format(format).why_not_run_here():
        pytest.skip(reason)


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
        if format == "web":
            request.getfixturevalue("browser_runtime")
        skip_unless_it_runs(format)
        if format not in exports:
            folder = tmp_path_factory.mktemp("exported") / format
            exports[format] = export_classifier(
                digits.model, digits.preprocessing, digits.classes, folder, format=format, name=digits.name
            )
        return exports[format].folder

    return export
