"""Pictures of detections."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from fbnetv3.detection.inference.visualize import class_color, draw_detections


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
