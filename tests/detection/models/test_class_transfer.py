"""Fine-tuning for other classes keeps the last layers' rows of classes with equal names."""

import pytest
import torch
from detectron2.modeling import build_model

from fbnetv3.detection import load_detector
from fbnetv3.detection.models.class_transfer import transfer_class_rows
from tests.detection.detectors import small_config

OLD = ["cat", "dog", "cow"]
NEW = ["dog", "fox", "cat", "owl", "cow"]  # the first five classes that small_config has room for


def numbered(*shape, start=0):
    """Return a tensor whose rows are filled with their number, from `start`."""
    rows = torch.arange(start, start + shape[0], dtype=torch.float32)
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def transferred(key, old, new):
    rows = transfer_class_rows({key: old}, {key: new}, OLD, NEW)[key]
    return rows.flatten(1)[:, 0].tolist() if rows.ndim > 1 else rows.tolist()


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("stage", ["", "0.", "2."])
def test_rows_of_the_box_predictor(kind, stage):
    size = (2,) if kind == "weight" else ()
    key = f"roi_heads.box_predictor.{stage}cls_score.{kind}"
    # Classes in the order of NEW, then the background
    assert transferred(key, numbered(4, *size), numbered(6, *size, start=100)) == [1, 101, 0, 103, 2, 3]
    key = f"roi_heads.box_predictor.{stage}bbox_pred.{kind}"
    rows = transferred(key, numbered(12, *size), numbered(20, *size, start=100))
    assert rows == [4, 5, 6, 7, 104, 105, 106, 107, 0, 1, 2, 3, 112, 113, 114, 115, 8, 9, 10, 11]


def test_rows_of_the_mask_predictor():
    key = "roi_heads.mask_head.predictor.weight"
    assert transferred(key, numbered(3, 2, 1, 1), numbered(5, 2, 1, 1, start=100)) == [1, 101, 0, 103, 2]


def test_rows_of_retinanet_for_each_anchor():
    old, new = numbered(6), numbered(10, start=100)  # two anchors
    assert transferred("head.cls_score.bias", old, new) == [1, 101, 0, 103, 2, 4, 106, 3, 108, 5]


def test_layers_that_all_classes_share_are_kept():
    for key in ("roi_heads.box_predictor.bbox_pred.weight", "roi_heads.mask_head.predictor.bias"):
        rows = 4 if "bbox" in key else 1
        assert transferred(key, numbered(rows), numbered(rows, start=100)) == list(range(rows))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cow", "cat"], "the last layers have all 2 classes from the weights, matched by name"),
        (NEW, "the last layers have 3 of 5 classes from the weights, matched by name; new: fox, owl"),
        (["fox"], "the weights have other classes than the dataset: these start from random values"),
    ],
)
def test_one_line_says_which_classes_are_kept(classes, message, caplog):
    caplog.set_level("INFO")
    transfer_class_rows({}, {}, OLD, classes)
    assert caplog.messages == [message]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("faster_rcnn_fbnetv3_a_C4", {}),
        ("faster_rcnn_fbnetv3_a_C4", {"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8}),
        ("retinanet_fbnetv3_a_FPN", {}),
    ],
)
def test_a_detector_for_other_classes_starts_from_all_that_it_shares(name, options, tmp_path):
    old, new = (detector_of(name, options, count) for count in (len(OLD), len(NEW)))
    metadata = {
        "detection_config": "",
        "arch": "a",
        "definition": "a",
        "classes": OLD,
        "category_ids": [1, 2, 3],
    }
    torch.save({"model": old.state_dict(), "metadata": metadata}, tmp_path / "old.pth")
    load_detector(new, tmp_path / "old.pth", new_classes=True, classes=NEW)
    weights = old.state_dict(), new.state_dict()
    for key, value in weights[0].items():
        if value.shape == weights[1][key].shape:
            assert torch.equal(value, weights[1][key]), key
    key = next(key for key in weights[0] if key.endswith("cls_score.weight"))
    anchors = len(weights[0][key]) // len(OLD) if key.startswith("head") else 1
    rows = [state[key].unflatten(0, (anchors, -1)) for state in weights]
    for index, label in enumerate(OLD):
        assert torch.equal(rows[0][:, index], rows[1][:, NEW.index(label)])


def detector_of(name, options, num_classes):
    cfg = small_config(name)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return build_model(cfg)
