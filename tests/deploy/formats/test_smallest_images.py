"""The smallest images of exports that take any size, as docs/formats.md has them."""

import re

import numpy as np
import pytest
import torch

from fbnetv3.deploy import export_classifier, load
from tests.pages import ROOT

FORMATS = ["onnx", "openvino", "torchscript", "torch-export"]


def documented_side(name):
    """Return the side in pixels that the page has for a format."""
    page = (ROOT / "docs" / "formats.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \|.*from (\d+) x \1 \|$", page, re.MULTILINE)
    return int(row)


@pytest.mark.parametrize("name", FORMATS)
def test_the_smallest_image(name, digits, tmp_path):
    pytest.importorskip(
        "openvino" if name == "openvino" else "onnxruntime", reason="pip install '.[export]'"
    )
    export_classifier(
        digits.model, digits.preprocessing, digits.classes, tmp_path / "out", format=name, any_size=True
    )
    runtime = load(tmp_path / "out").runtime
    side = documented_side(name)
    for shape in ((side, side), (side, side + 16), (side + 33, side)):
        images = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = digits.model(images).numpy()
        np.testing.assert_allclose(runtime.run(images.numpy()), expected, atol=1e-5)
    if side > 1:
        with pytest.raises(Exception, match="Guard failed"):
            runtime.run(np.zeros((2, 1, side - 1, side - 1), np.float32))
