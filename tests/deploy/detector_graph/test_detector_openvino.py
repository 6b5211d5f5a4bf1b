"""Detectors as OpenVINO files: the same detections in float32, and the same objects in lower precisions."""

import pytest

pytest.importorskip("openvino", reason="OpenVINO is optional: pip install '.[export]'")

from fbnetv3 import deploy
from fbnetv3.deploy.detector_graph.detector_int8 import DetectorPrecisionSettings
from fbnetv3.deploy.detector_graph.detector_onnx import export_detector_to_onnx
from fbnetv3.deploy.predictors.detector_predictor import ShortSideResize
from fbnetv3.errors import UsageError
from tests.deploy.detector_graph.test_detector_int8 import BrightestRow, brightest_row, striped_image

IMAGES = [striped_image(row) for row in range(8)]


def write(output, precision=None, format="openvino"):
    if precision is not None:
        precision = DetectorPrecisionSettings(precision, IMAGES, IMAGES[:4])
    return export_detector_to_onnx(
        BrightestRow(),
        ShortSideResize(0, 1),
        ["row"],
        output,
        original=brightest_row,
        images=IMAGES,
        format=format,
        precision=precision,
    )


@pytest.mark.parametrize("precision", [None, "bfloat16", "int8"])
def test_it_finds_the_objects(precision, tmp_path):
    if precision == "int8":
        pytest.importorskip("nncf", reason="NNCF is optional: pip install '.[converters]'")
    done = write(tmp_path / "out", precision)
    assert (done.manifest.format, done.manifest.precision) == ("openvino", precision or "float32")
    assert {"model.xml", "model.bin"} < set(done.manifest.files)
    outputs = {output["name"]: (output["type"], output["shape"]) for output in done.manifest.output}
    assert outputs["boxes"] == ("float32", [None, 4]) and outputs["classes"] == ("int64", [None])
    if precision:
        assert done.manifest.verification[precision]["agreement"] == 100
    predictor = deploy.load(done.folder)
    assert predictor.runtime.name.startswith("openvino ")
    for row in (2, 5):
        (detection,) = predictor(striped_image(row))
        # In bfloat16, 40 and 48 are exact
        assert detection.box == pytest.approx((0, 8 * row, 40, 8 * row + 8))
        assert detection.score == pytest.approx(0.8, rel=2**-8)


def test_precisions_that_the_format_lacks(tmp_path):
    with pytest.raises(UsageError, match="onnx offers float32, int8, not bfloat16"):
        write(tmp_path / "out", "bfloat16", "onnx")
    with pytest.raises(
        UsageError, match="format executorch for a detector must be one of onnx, openvino, web"
    ):
        write(tmp_path / "out", format="executorch")
    assert not list(tmp_path.iterdir())
