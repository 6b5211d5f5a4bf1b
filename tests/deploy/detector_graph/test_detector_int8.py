"""An int8 detector is compared with its float32 version, and kept only if it finds the same objects."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="ONNX Runtime is optional: pip install '.[export]'")

from fbnetv3 import deploy
from fbnetv3.deploy.detector_graph import box_ops
from fbnetv3.deploy.detector_graph.detector_int8 import (
    DetectorPrecisionSettings,
    agreement,
    pairwise_iou,
    reduce_detector_precision,
)
from fbnetv3.deploy.detector_graph.detector_onnx import export_detector_to_onnx
from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays, ShortSideResize
from fbnetv3.errors import ExportError, UsageError


def detections(boxes, scores, classes):
    return DetectionArrays(np.float32(boxes).reshape(-1, 4), np.float32(scores), np.array(classes, int))


def test_pairwise_iou():
    first = np.float32([[0, 0, 10, 10], [0, 0, 4, 5]])
    second = np.float32([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    assert np.allclose(pairwise_iou(first, second), [[1 / 3, 0, 1], [0, 0, 0.2]])
    assert pairwise_iou(first, second[:0]).shape == (2, 0)


def test_agreement_counts_the_confident_detections_of_both():
    box, other = [0, 0, 10, 10], [50, 50, 60, 60]
    reference = detections([box, other], [0.9, 0.3], [0, 1])
    # The counterpart may have any score, but must have the class and cover half of the union
    assert agreement([reference], [detections([box], [0.2], [0])]) == 100
    assert agreement([reference], [detections([box], [0.9], [1])]) == 0
    assert agreement([reference], [detections([[0, 0, 10, 4]], [0.1], [0])]) == 0
    # Three confident detections, two of which have a counterpart
    extra = detections([box, [80, 80, 90, 90]], [0.8, 0.7], [0, 0])
    assert agreement([reference], [extra]) == pytest.approx(200 / 3)
    assert agreement([detections([], [], [])], [detections([], [], [])]) == 100


class BrightestRow(torch.nn.Module):
    """Detects a box in the brightest eighth of the rows, found by two convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blur = torch.nn.Conv2d(3, 8, 5, padding=2)
        self.blur.weight.data.abs_()
        self.join = torch.nn.Conv2d(8, 1, 1)
        self.join.weight.data.fill_(1.0)

    def forward(self, images):
        x = self.join(self.blur(images.permute(0, 3, 1, 2).float() / 255)).mean((1, 3))
        rows = x.unflatten(1, (8, -1)).mean(2)
        scores = 0.8 * rows.softmax(1).sign()
        start = rows.argmax(1, keepdim=True) * (images.shape[1] // 8)
        ones = torch.ones_like(start)
        boxes = torch.stack((0 * start, start, 40 * ones, start + 8), 2).float()
        image_indices, _, kept = box_ops.multiclass_nms(boxes, scores[:, None, :1], 0.5, 0.1, 10).unbind(1)
        return boxes[image_indices, kept], scores[image_indices, kept], kept, image_indices


def brightest_row(pixels):
    with torch.no_grad():
        outputs = BrightestRow()(torch.tensor(pixels)[None])
    return DetectionArrays(*(output.numpy() for output in outputs[:3]))


def striped_image(row):
    image = np.full((64, 40, 3), 30, np.uint8)
    image[8 * row : 8 * row + 8] = 220
    return image


def write(output, **settings):
    images = [striped_image(row) for row in range(8)]
    return export_detector_to_onnx(
        BrightestRow(),
        ShortSideResize(0, 1),
        ["row"],
        output,
        original=brightest_row,
        images=images,
        precision=DetectorPrecisionSettings(
            "int8", **{"calibration": images[:4], "images": images, **settings}
        ),
    )


def test_the_file_is_quantized_and_finds_the_same_objects(tmp_path):
    precisions = iter([61.0, 60.5])
    done = write(tmp_path / "out", average_precision=lambda predictor, precision: next(precisions))
    onnx = pytest.importorskip("onnx")
    operators = [node.op_type for node in onnx.load(done.model).graph.node]
    assert "QuantizeLinear" in operators
    check = done.manifest.verification["int8"]
    assert (check["agreement"], check["ap_float32"], check["ap_int8"]) == (100, 61.0, 60.5)
    assert (check["images"], check["calibration_images"], check["min_agreement"]) == (4, 4, 0)
    # Half of the images are used for calibration
    assert check["shared_images"] == 4
    # Each of the other images has an object that both find; Wilson's interval for 8 of 8 begins at 8 / (8 + 1.96^2)
    assert check["objects"] == 8 and check["agreement_lower_bound"] == pytest.approx(67.56, abs=0.01)
    detection = deploy.load(done.folder)(striped_image(5))[0]
    assert detection.box == pytest.approx((0, 40, 40, 48)) and detection.score == pytest.approx(0.8)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"average_precision": iter([50.0, 48.9]).__next__},
            "reduces AP from 50.00 to 48.90; the limit is",
        ),
        ({"min_agreement": 100.5}, "agrees with float32 on 100.0% of the objects; 100.5% are required"),
    ],
)
def test_int8_beyond_a_limit_is_not_kept(settings, message, tmp_path):
    if "average_precision" in settings:
        following = settings["average_precision"]
        settings = {"average_precision": lambda predictor, precision: following()}
    with pytest.raises(ExportError, match=f"int8 {message}.*Nothing was exported"):
        write(tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


class Blind:
    """A predictor that detects nothing."""

    name = "blind"

    def detect(self, pixels):
        return detections([], [], [])


def test_images_with_objects_are_required():
    with pytest.raises(UsageError, match="int8 needs images to calibrate on"):
        DetectorPrecisionSettings("int8", [striped_image(0)])
    settings = DetectorPrecisionSettings("int8", [striped_image(0)] * 8, [striped_image(1)])
    with pytest.raises(
        ExportError, match="blind: detects nothing with a score of at least 0.5 in the 8 images"
    ):
        reduce_detector_precision(None, None, None, Blind(), settings)
