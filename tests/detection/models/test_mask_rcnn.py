"""Mask R-CNN trains on datasets with polygons and with run-length masks."""

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model

from fbnetv3.detection.data.annotations.clean_annotations import check_annotations
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from tests.detection.coco_files import annotation, dataset, save_dataset
from tests.detection.detectors import detect, small_config, train_step


def run_length(low, high):
    """Return a rectangle as a run-length mask of an image of 64 x 48 pixels."""
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[low[1] : high[1], low[0] : high[0]] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


TRIANGLE = [8.0, 8.0, 40.0, 8.0, 40.0, 32.0]
SQUARES = [
    [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0],
    [30.0, 10.0, 40.0, 10.0, 40.0, 20.0, 30.0, 20.0],
]
CROWD = annotation(9, 1, iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]})


def config(mask_format):
    cfg = small_config("mask_rcnn_fbnetv3_a_C4")
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MASK_FORMAT = (96,), mask_format
    return cfg


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_a_training_step(mask_format, tmp_path):
    if mask_format == "polygon":
        shapes = [[TRIANGLE], SQUARES]
    else:
        shapes = [run_length((8, 8), (40, 32)), run_length((10, 10), (40, 20))]
    boxes = [
        annotation(1, 1, bbox=(8.0, 8.0, 32.0, 24.0), segmentation=shapes[0]),
        annotation(2, 2, 2, bbox=(10.0, 10.0, 30.0, 10.0), segmentation=shapes[1]),
        CROWD,
    ]
    file, root = save_dataset(tmp_path, dataset(3, boxes, classes="abcde"))
    assert check_annotations(file, root, mask_format=mask_format).masks == 2
    cfg = config(mask_format)
    mapper = FBNetV3DatasetMapper(cfg, is_train=True)
    inputs = [mapper(entry) for entry in load_coco_json(str(file), str(root), f"{mask_format} {tmp_path}")]
    assert [len(x["instances"]) for x in inputs] == [1, 1, 0]
    for x in inputs[:2]:  # masks are resized and flipped with their boxes
        instances = x["instances"]
        assert x["image"].shape[1:] == (96, 128)
        mask_boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert (mask_boxes - instances.gt_boxes.tensor).abs().max() <= (
            0.001 if mask_format == "polygon" else 1
        )
    model = build_model(cfg)
    losses = train_step(model, inputs)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(math.isfinite(loss) for loss in losses.values()) and losses["loss_mask"] > 0
    head = model.roi_heads.mask_head
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    assert any(p.grad.abs().max() > 0 for p in head.parameters())
    assert [instances.image_size for instances in detect(model, inputs)] == [(48, 64)] * 3


def test_a_mask_is_learned(tmp_path):
    """Steps on one image reduce its mask loss: mask targets are cropped from the right boxes."""
    torch.manual_seed(0)
    file, root = save_dataset(
        tmp_path,
        dataset(1, [annotation(bbox=(8.0, 8.0, 32.0, 24.0), segmentation=[TRIANGLE])], classes="abcde"),
    )
    cfg = config("polygon")
    cfg.INPUT.RANDOM_FLIP = "none"
    (entry,) = load_coco_json(str(file), str(root), f"learned {tmp_path}")
    inputs = [FBNetV3DatasetMapper(cfg, is_train=True)(entry)]
    model = build_model(cfg)
    optimizer = torch.optim.Adam(model.roi_heads.mask_head.parameters(), 0.01)
    losses = []
    for _ in range(15):
        model.zero_grad()
        losses.append(train_step(model, inputs)["loss_mask"])
        optimizer.step()
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
