"""AOTInductor packages: batches, sizes that they do not take, and a missing compiler."""

import numpy as np
import pytest
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.deploy import export_classifier, load
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import MissingPackageError, UsageError
from tests.deploy.conftest import skip_unless_it_runs


class Classifier(torch.nn.Module):
    """A convolution and a mean, which compile quickly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    skip_unless_it_runs("aoti")

    def export(any_size):
        folder = tmp_path_factory.mktemp("aoti") / "out"
        preprocessing = Preprocessing(16, 16, (0.5,), (0.5,))
        return export_classifier(
            Classifier().eval(), preprocessing, list("abc"), folder, format="aoti", any_size=any_size
        )

    return export


@pytest.mark.parametrize("any_size", [False, True])
def test_any_batch(any_size, export):
    done = export(any_size)
    assert done.model.name == "model.pt2"  # the manifest tells it from an archive of torch.export
    assert done.manifest.input["shape"] == [None, 1, *([None, None] if any_size else [16, 16])]
    runtime = load(done.folder).runtime
    for shape in ((1, 1, 16, 16), (8, 1, 16, 16), *([(2, 1, 24, 20)] if any_size else [])):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(runtime.run(x.numpy()), Classifier()(x).numpy()) < 1e-4
    if not any_size:
        # The native code would read beyond the image
        with pytest.raises(
            UsageError, match=r"shape \(2, 1, 24, 20\), but the network takes \(None, 1, 16, 16\)"
        ):
            runtime.run(np.zeros((2, 1, 24, 20), np.float32))


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/g++",))
    with pytest.raises(
        MissingPackageError, match="needs a C\\+\\+ compiler, and there is none: install one"
    ):
        export_classifier(
            Classifier(),
            Preprocessing(16, 16, (0.5,), (0.5,)),
            list("abc"),
            tmp_path / "out",
            format="aoti",
        )
    assert not (tmp_path / "out").exists()
