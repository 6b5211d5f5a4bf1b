"""TorchScript files take batches and images of any size."""

import numpy as np
import pytest
import torch

from fbnetv3.deploy import export_classifier, load
from fbnetv3.deploy.predictors.logit_difference import relative_difference

SHAPES = [(1, 1, 32, 32), (5, 1, 32, 32), (2, 1, 48, 40), (3, 1, 65, 33)]


def test_the_file_needs_only_torch(exported):
    model = torch.jit.load(exported("torchscript") / "model.pt")
    with torch.inference_mode():
        logits = model(torch.zeros(3, 1, 32, 32)).numpy()
    np.testing.assert_array_equal(
        logits, load(exported("torchscript")).runtime.run(np.zeros((3, 1, 32, 32), np.float32))
    )


@pytest.mark.parametrize("any_size", [False, True])
def test_any_batch_and_any_size(any_size, tiny, digits, tmp_path):
    done = export_classifier(
        tiny,
        digits.preprocessing,
        digits.classes,
        tmp_path / "out",
        format="torchscript",
        any_size=any_size,
    )
    assert done.manifest.input["shape"] == [None, 1, *([None, None] if any_size else [32, 32])]
    runtime = load(done.folder).runtime
    for shape in SHAPES if any_size else SHAPES[:2]:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(runtime.run(x.numpy()), tiny(x).numpy()) < 1e-4
