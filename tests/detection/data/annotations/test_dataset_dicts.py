"""Dataset dicts are detectron2's, and annotations can be made of anyone's dataset dicts."""

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations, read_clean_annotations
from fbnetv3.detection.data.annotations.dataset_dicts import from_dataset_dicts, to_dataset_dicts
from tests.detection.coco_files import annotation, dataset, save_dataset

BOXES = [
    annotation(1, segmentation=[[8, 8, 32, 8, 32, 24], [1, 2, 3]]),
    annotation(2, 2, 2, iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]}),
    annotation(3, keypoints=[10, 10, 2, 20, 20, 0]),
]


def test_dicts_are_those_of_detectron2(tmp_path):
    file, root = save_dataset(tmp_path, dataset(3, BOXES), images=False)
    dicts = to_dataset_dicts(read_clean_annotations(file, root))
    expected = load_coco_json(str(file), str(root), f"expected {tmp_path}")
    # detectron2 has bytes where JSON files have text, which pycocotools treats alike
    mask = expected[1]["annotations"][0]["segmentation"]
    mask["counts"] = mask["counts"].decode()
    assert dicts == expected


def test_class_indices_can_be_those_of_a_detector(tmp_path):
    clean = clean_annotations(dataset(2, [annotation(1, 1, 1), annotation(2, 1, 2)]), "", "a.json")
    (first, _) = to_dataset_dicts(clean, [5, 0])
    assert [a["category_id"] for a in first["annotations"]] == [5, 0]


def test_annotations_of_dicts_become_the_same_dicts():
    clean = clean_annotations(dataset(3, BOXES), "", "a.json")
    dicts = to_dataset_dicts(clean)
    again = clean_annotations(from_dataset_dicts(dicts, clean.classes), "", "dicts")
    assert to_dataset_dicts(again) == dicts


def test_boxes_may_be_corners_and_arrays():
    box = {"bbox": np.array([8, 8, 32, 24]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": np.int64(0)}
    record = {"file_name": "a.png", "height": 48, "width": 64, "annotations": [box]}
    data = from_dataset_dicts([record], ["cat"])
    assert data["annotations"][0]["bbox"] == [8, 8, 24, 16]
    assert clean_annotations(data, "", "dicts").annotations[0]["bbox"] == [8, 8, 24, 16]
