"""Pictures of detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import ImageDraw

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.detection.inference.visualize import (
    class_color,
    draw_detections,
    relative_luminance,
    text_color,
)


def test_boxes_are_drawn_at_their_coordinates():
    instances = Instances((100, 150))
    instances.pred_boxes = Boxes(torch.tensor([[30.0, 40.0, 90.0, 80.0], [0.0, 0.0, 150.0, 100.0]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.3]), torch.tensor([1, 0])
    picture = np.zeros((100, 150, 3), np.uint8)
    drawn = np.asarray(draw_detections(picture, instances, ("a", "b")))
    assert picture.max() == 0
    for (x0, y0, x1, y1), color in (((30, 40, 89, 79), class_color(1)), ((0, 0, 149, 99), class_color(0))):
        for y, x in ((y1, x0), (y1, x1), (y0, x1), ((y0 + y1) // 2 + 5, x1)):
            assert tuple(drawn[y, x]) == color
    assert not drawn[60:78, 32:88].any()


def instances(height, width, boxes, classes=None, **fields):
    """Return detections with falling scores."""
    result = Instances((height, width))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    result.scores = torch.linspace(0.92, 0.5, len(boxes))
    result.pred_classes = torch.zeros(len(boxes), dtype=torch.int64) if classes is None else classes
    for name, value in fields.items():
        result.set(name, value)
    return result


@pytest.fixture
def drawn_texts(monkeypatch):
    """The texts that are drawn, with the rectangles that they cover."""
    texts = []
    real = ImageDraw.ImageDraw.text

    def text(self, xy, text, font=None, **arguments):
        texts.append((text, self.textbbox(xy, text, font=font)))
        real(self, xy, text, font=font, **arguments)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def draw(height, width, *arguments, names=("4",), **fields):
    picture = np.zeros((height, width, 3), np.uint8)
    return np.asarray(draw_detections(picture, instances(height, width, *arguments, **fields), names))


def test_labels_separate_the_name_from_the_score(drawn_texts):
    draw(100, 200, [[30, 40, 90, 80]])
    draw(100, 200, [[30, 40, 90, 80]], track_ids=torch.tensor([12]))
    draw(100, 200, [[30, 40, 90, 80]], track_ids=torch.tensor([-1]))
    assert [text for text, _ in drawn_texts] == ["4: 92%", "4 #12: 92%", "4: 92%"]


@pytest.mark.parametrize("size", [(30, 60), (67, 100), (480, 640), (3000, 4000)])
def test_labels_are_never_cut_off(drawn_texts, size):
    """At all borders, in images of all sizes; names that are too long are shortened, not the scores."""
    height, width = size
    corners = ((0, 0, 1, 1), (0.8, 0, 1, 0.3), (0, 0.9, 0.1, 1), (0.9, 0.9, 1, 1), (-0.1, 0.4, 0.1, 0.5))
    boxes = [[x0 * width, y0 * height, x1 * width, y1 * height] for x0, y0, x1, y1 in corners]
    classes = torch.tensor([0, 1, 1, 0, 1])
    draw(height, width, boxes, classes, names=("cat", "a name that is longer than the image is wide" * 3))
    assert len(drawn_texts) == 5
    for text, (left, top, right, bottom) in drawn_texts:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        assert text.endswith("%")


def test_a_picture_without_space_for_a_label(drawn_texts):
    assert draw(6, 6, [[1, 1, 5, 5]]).any()
    assert drawn_texts == []


def test_labels_avoid_one_another(drawn_texts):
    draw(200, 300, [[100, 50, 250, 150], [105, 52, 250, 150], [110, 54, 240, 140]], names=("cat",))
    for i, (_, a) in enumerate(drawn_texts):
        for _, b in drawn_texts[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_text_has_enough_contrast():
    """At least 4.5, as WCAG 2 requires. Black on white has 21, and #777777 on white 4.48."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)
    for index in range(200):
        assert contrast(class_color(index), text_color(class_color(index))) >= 4.5


def contrast(a, b):
    darker, lighter = sorted(map(relative_luminance, (a, b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_masks_and_keypoints_are_drawn():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 30:50, 20:40] = True
    points = torch.tensor([[[60.0, 40.0, 1.0], [70.0, 20.0, 0.01]]])
    drawn = draw(60, 80, [[10, 5, 78, 58]], pred_masks=masks, pred_keypoints=points)
    color = class_color(0)
    assert tuple(drawn[40, 30]) == tuple(round(0.45 * value) for value in color)
    assert not drawn[40, 45].any()
    assert tuple(drawn[40, 60]) == color
    assert not drawn[20, 70].any()  # the detector is not sure of this point


def test_lines_connect_the_keypoints_that_the_detector_is_sure_of():
    skeleton = KeypointSkeleton(("a", "b", "c"), lines=(("a", "b"), ("b", "c")))
    points = torch.tensor([[[20.0, 40.0, 1.0], [60.0, 40.0, 0.5], [60.0, 10.0, 0.01]]])
    detections = instances(60, 80, [[1, 1, 79, 59]], pred_keypoints=points)
    black = np.zeros((60, 80, 3), np.uint8)
    drawn = np.asarray(draw_detections(black, detections, ("4",), skeleton))
    assert tuple(drawn[40, 40]) == class_color(0)
    assert not drawn[25, 55:65].any()
    assert not np.asarray(draw_detections(black, detections, ("4",)))[40, 40].any()
