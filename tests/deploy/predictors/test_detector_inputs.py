"""What a detector does with images before its network sees them: sources, errors, and the size after resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from fbnetv3.deploy import DetectorPredictor
from fbnetv3.deploy.predictors.detector_predictor import ShortSideResize
from fbnetv3.errors import DataError


class MeanBox:
    """A runtime that finds the whole image, with its mean brightness as score; it records the shapes of batches."""

    def __init__(self):
        self.shapes = []

    def run_outputs(self, input_name, batch):
        self.shapes.append(batch.shape)
        count, height, width, _ = batch.shape
        boxes = np.array([[0, 0, width, height]], np.float32).repeat(count, 0)
        scores = (batch.mean((1, 2, 3)) / 255).astype(np.float32)
        return [boxes, scores, np.zeros(count, np.int64), np.arange(count)]


def detector(resize=None):
    return DetectorPredictor(MeanBox(), resize or ShortSideResize(32, 64), ["all"])


def encode(brightness, size=(40, 30)):
    file = io.BytesIO()
    Image.new("L", size, brightness).save(file, "PNG")
    return file.getvalue()


def test_contents_of_files_and_file_objects(tmp_path):
    content = encode(102)
    (tmp_path / "x.png").write_bytes(content)
    predict = detector()
    sources = [
        tmp_path / "x.png",
        content,
        bytearray(content),
        io.BytesIO(content),
        Image.open(io.BytesIO(content)),
    ]
    for result in predict(sources):
        assert [(d.label, d.box) for d in result] == [("all", (0, 0, 40, 30))]
        assert result[0].score == pytest.approx(0.4)


def test_unreadable_images_can_be_skipped(caplog):
    predict = detector()
    images = [b"corrupt", encode(51), b"", encode(102)]
    for batch_size in (1, 3, 4):
        first, second, third, fourth = predict(images, batch_size=batch_size, on_error="skip")
        assert first is None and third is None
        assert (second[0].score, fourth[0].score) == pytest.approx((0.2, 0.4))
    assert predict(b"corrupt", on_error="skip") is None
    assert "skipped: images[2]" in caplog.text
    with pytest.raises(DataError, match=r"images\[1\]: corrupt"):
        predict(images[1:3] * 2)


@pytest.mark.parametrize("short_side", [1, 3, 32, 50])
@pytest.mark.parametrize("ratio", [1, 1.5, 2, 2.1, 7, 300, 20_000])
def test_resized_images_are_bounded(short_side, ratio):
    """The size is that of detectron2's ResizeShortestEdge, which never exceeds the longest side."""
    long_side = round(ratio * short_side)
    predict = detector(ShortSideResize(32, 64))
    for size in ((long_side, short_side), (short_side, long_side)):
        predict(np.zeros(size, np.uint8))
        _, height, width, _ = predict.runtime.shapes[-1]
        # By its definition, without the rounding
        scale = min(32 / short_side, 64 / long_side)
        assert max(height, width) <= 64 and min(height, width) <= 32
        assert height == pytest.approx(max(1, size[0] * scale), abs=0.51)
        assert width == pytest.approx(max(1, size[1] * scale), abs=0.51)
