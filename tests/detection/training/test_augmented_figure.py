"""The picture of training inputs shows boxes, masks and keypoints where they are."""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

from fbnetv3.detection.training.augmented_figure import draw_training_inputs
from tests.detection.detectors import small_config


def inputs(masks, height=40, width=60):
    """Return a black image with an object in the middle of its right half, and one without objects."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[35.0, 10.0, 55.0, 30.0]]))
    instances.gt_classes = torch.tensor([3])
    instances.gt_masks = masks
    instances.gt_keypoints = Keypoints(torch.tensor([[[45.0, 20.0, 2.0], [5.0, 20.0, 0.0]]]))
    black = torch.zeros(3, height, width, dtype=torch.uint8)
    empty = Instances((2 * height, width))
    empty.gt_boxes, empty.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long)
    return [
        {"image": black, "instances": instances, "file_name": "folder/a.png"},
        {
            "image": torch.zeros(3, 2 * height, width, dtype=torch.uint8),
            "instances": empty,
            "file_name": "b.png",
        },
    ]


def test_targets_are_drawn_in_place():
    polygon = [np.array([35.0, 10, 55, 10, 55, 30, 35, 30])]
    bitmap = torch.zeros(1, 40, 60, dtype=torch.bool)
    bitmap[0, 10:30, 35:55] = True
    cfg = small_config()
    cfg.DATASETS.TRAIN = ("classes_without_names",)  # a short label: the class index
    pictures = []
    for masks in (PolygonMasks([polygon]), BitMasks(bitmap)):
        figure = draw_training_inputs(inputs(masks), cfg)
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts == ["a.png", "40 x 60 pixels; objects: 1", "b.png", "80 x 60 pixels; objects: 0"]
        first, second = (np.asarray(image.get_array()) for image in figure.axes[0].images)
        # The larger image fills its square of 80 pixels; the smaller one is in the middle of its own
        assert first.shape == second.shape == (80, 80, 3)
        assert (second[:, 10:70] == 0).all() and (second[:, :10] == 255).all()
        picture = first[20:60, 10:70]
        assert picture[25, 40].any(), "mask"
        assert picture[20, 45].tolist() == [255, 255, 255], "visible keypoint"
        assert not picture[15:26, :30].any(), "nothing is left of the box, nor the unlabeled keypoint"
        pictures.append(picture)
    assert np.array_equal(*pictures)
