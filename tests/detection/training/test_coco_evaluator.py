"""Evaluation on clean annotations: an oracle, which answers with the annotated boxes, scores 100, or n/a."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from fbnetv3.data.classes.class_matching import ClassMismatchError
from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
from fbnetv3.detection.training.coco_evaluator import CleanCOCOEvaluator
from tests.detection.coco_files import annotation, dataset, save_dataset
from tests.detection.oracles import annotated_boxes, evaluate_detections, expected_columns, oracle_results

SIZES = {f"{number}.png": (64, 48) for number in range(1, 9)}
RUN_LENGTH = {"size": [48, 64], "counts": [0, 3072]}


def without(key, *annotations):
    return [{name: value for name, value in entry.items() if name != key} for entry in annotations]


TWO = annotation(1), annotation(2, 2, 2)
CASES = {
    "annotation id 0": [annotation(0), annotation(1, 2, 2)],
    "annotation ids are text": [annotation("a"), annotation("b", 2, 2)],
    "repeated annotation ids": [annotation(1), annotation(1, 2, 2)],
    "no annotation ids": without("id", *TWO),
    "no area": without("area", *TWO),
    "no iscrowd": without("iscrowd", *TWO),
    "half outside": [annotation(1), annotation(2, 2, bbox=(-16, 8, 32, 16))],
    "float boxes": [annotation(1, bbox=(0.25, 1.125, 3.5, 40.75)), annotation(2, 2, 2)],
    "one object of two classes": [annotation(1)],
    "an object and a crowd": [annotation(1), annotation(2, 1, iscrowd=1, segmentation=RUN_LENGTH)],
}
LEFT_OUT = {
    "zero area": annotation(2, 2, bbox=(20, 20, 0, 40)),
    "outside": annotation(2, 2, bbox=(300, 300, 40, 40)),
    "unlisted image": annotation(2, 7),
}


@pytest.mark.parametrize("case", CASES)
def test_an_oracle_scores_100(case):
    data = dataset(2, CASES[case])
    clean = clean_annotations(data, "", case)
    results = oracle_results(clean, annotated_boxes(data, SIZES))
    assert results["AP"] == pytest.approx(100)
    assert results == pytest.approx(expected_columns(clean), nan_ok=True)


@pytest.mark.parametrize("case", LEFT_OUT)
def test_boxes_without_area_in_their_image_are_no_ground_truth(case, caplog):
    data = dataset(2, [annotation(1), LEFT_OUT[case]], classes=("cat",))
    with caplog.at_level(logging.WARNING):
        clean = clean_annotations(data, "", "file.json")
    assert caplog.messages[0].startswith("file.json: left out: ") and "(1)" in caplog.messages[0]
    assert oracle_results(clean, annotated_boxes(data, SIZES))["AP"] == pytest.approx(100)


@pytest.mark.parametrize("annotations", [[], [annotation(1, iscrowd=1, segmentation=RUN_LENGTH)]])
def test_without_objects_there_is_nothing_to_average(annotations):
    clean = clean_annotations(dataset(2, annotations), "", "file.json")
    something = [((1.0, 2.0, 30.0, 40.0), "cat", 0.9)]
    for detections in ({}, {1: something, 2: something}):
        results = evaluate_detections(clean, detections, tasks=("bbox",))["bbox"]
        assert len(results) == 8 and all(map(math.isnan, results.values()))


def test_a_detector_that_finds_nothing_scores_0():
    clean = clean_annotations(
        dataset(2, [annotation(1), annotation(2, bbox=(0, 0, 64, 48))]), "", "file.json"
    )
    results = evaluate_detections(clean, {})["bbox"]
    # 384 and 3,072 square pixels, both cats
    nan = math.nan
    columns = {"AP": 0, "AP50": 0, "AP75": 0, "APs": 0, "APm": 0, "APl": nan, "AP-cat": 0, "AP-dog": nan}
    assert results == pytest.approx(columns, nan_ok=True)


def test_a_box_of_half_the_width_has_an_iou_of_half():
    """At a threshold of 0.5, it is found; at the other nine, it is not."""
    clean = clean_annotations(dataset(1, [annotation(1, bbox=(0, 0, 40, 40))]), "", "file.json")
    results = evaluate_detections(clean, {1: [((0.0, 0.0, 20.0, 40.0), "cat", 1.0)]})["bbox"]
    assert (results["AP50"], results["AP75"]) == (pytest.approx(100), 0)
    assert results["AP"] == results["AP-cat"] == pytest.approx(10)


@pytest.mark.parametrize("limit", [1, 100, 300, -1])
def test_another_limit_of_detections_keeps_the_columns(limit):
    """Of three cats, a limit of one detection per image finds one: precision 1 up to a recall of a third.

    -1 is detectron2's "all".
    """
    boxes = [annotation(i, bbox=(20 * i, 0, 10, 10)) for i in range(3)]
    data = dataset(1, boxes)
    clean = clean_annotations(data, "", "file.json")
    results = oracle_results(clean, annotated_boxes(data, SIZES), max_detections=limit)
    ap = 100 * 34 / 101 if limit == 1 else 100  # recalls 0, 0.01 to 0.33 of 101
    assert (results["AP"], results["APs"]) == (pytest.approx(ap), pytest.approx(ap))
    assert math.isnan(results["APl"])


def test_on_a_correct_file_detectron2s_evaluator_computes_the_same(tmp_path):
    rng = np.random.default_rng(5)
    corners = [rng.integers(0, (30, 20)).tolist() + rng.integers(5, 25, 2).tolist() for _ in range(40)]
    boxes = [annotation(i + 1, i % 8 + 1, i % 2 + 1, box) for i, box in enumerate(corners)]
    data = dataset(8, boxes)
    file, root = save_dataset(tmp_path, data, images=False)
    MetadataCatalog.get("compared").set(
        json_file=str(file), thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={1: 0, 2: 1}
    )
    theirs = COCOEvaluator("compared", ("bbox",), use_fast_impl=False)
    own = CleanCOCOEvaluator("compared", clean_annotations(data, root, file))
    for evaluator in (theirs, own):
        evaluator.reset()
        rng = np.random.default_rng(6)
        for image_id in range(1, 9):
            instances = Instances((48, 64))
            near = [corners[i] for i in range(40) if i % 8 + 1 == image_id]
            x, y, w, h = np.transpose(near) + rng.normal(0, 1.5, (4, len(near)))
            instances.pred_boxes = Boxes(
                torch.tensor(np.stack([x, y, x + w, y + h], 1), dtype=torch.float32)
            )
            instances.pred_classes = torch.tensor(rng.integers(0, 2, len(near)))
            instances.scores = torch.tensor(rng.random(len(near)))
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    expected, results = theirs.evaluate()["bbox"], own.evaluate()["bbox"]
    assert 5 < results["AP"] < 95
    assert results == pytest.approx(expected, nan_ok=True)


def test_classes_are_matched_by_name(caplog):
    data = dataset(2, [*TWO])
    clean = clean_annotations(data, "", "file.json")
    boxes = annotated_boxes(data, SIZES)
    boxes[1].append(((1, 1, 9, 9), "bird"))
    with caplog.at_level(logging.INFO, "fbnetv3"):
        results = oracle_results(clean, boxes, ["dog", "bird", "cat"])
    assert results == pytest.approx(expected_columns(clean), nan_ok=True)
    assert "oracle: 1 detections of classes that it lacks are left out (1 bird)" in caplog.messages
    with pytest.raises(ClassMismatchError, match=r"lacks dog: oracle has 2 .*cat, dog.* has 2 .*cat, bird"):
        oracle_results(clean, {}, ["cat", "bird"])


def test_results_files_have_the_ids_of_the_annotation_file(tmp_path):
    data = dataset(3, [annotation(1, "a"), annotation(2, 2.0, "x"), annotation(3, 7, 5)])
    for image, image_id in zip(data["images"], ["a", 2.0, 7], strict=True):
        image["id"] = image_id
    for category, category_id in zip(data["categories"], [5, "x"], strict=True):
        category["id"] = category_id
    data["annotations"][0]["category_id"] = 5
    clean = clean_annotations(data, "", "file.json")
    results = oracle_results(clean, annotated_boxes(data, SIZES), folder=str(tmp_path))
    assert results["AP"] == pytest.approx(100)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {(result["image_id"], result["category_id"]) for result in saved} == {("a", 5), (2, "x"), (7, 5)}


def test_results_can_be_loaded_with_the_annotation_file(tmp_path):
    data = dataset(2, [*TWO])
    file, root = save_dataset(tmp_path, data)
    clean = clean_annotations(data, root, file)
    oracle_results(clean, annotated_boxes(data, SIZES), folder=str(tmp_path))
    loaded = COCO(str(file)).loadRes(str(tmp_path / "coco_instances_results.json"))
    assert [loaded.anns[i]["category_id"] for i in (1, 2)] == [1, 2]


def test_masks_are_evaluated_where_there_are_any(caplog):
    """A crowd without a mask has that of its box, in which detections are no mistakes."""
    polygon = [[8, 8, 32, 8, 32, 24, 8, 24]]
    nothing = [[8, 8, 8.1, 8, 8.1, 8.1]]
    boxes = [
        annotation(1, segmentation=polygon),
        annotation(2, bbox=(40, 8, 8, 8), segmentation=nothing),
        annotation(3, bbox=(0, 30, 64, 18), iscrowd=1),
    ]
    clean = clean_annotations(dataset(1, boxes), "", "file.json")
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 8:24, 8:32] = True
    masks[1, 30:40, :20] = True
    detections = [((8.0, 8.0, 32.0, 24.0), "cat", 1.0), ((0.0, 30.0, 20.0, 40.0), "cat", 1.0)]
    with caplog.at_level(logging.INFO, "fbnetv3"):
        results = evaluate_detections(clean, {1: detections}, masks={1: masks}, tasks=("bbox", "segm"))
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100 * 51 / 101)  # one of two boxes
    assert "oracle: 1 objects without a mask are left out of segm" in caplog.messages


def test_keypoints_are_evaluated():
    keypoints = [10, 10, 2, 20, 20, 1]
    boxes = [annotation(1, keypoints=keypoints), annotation(2)]
    data = dataset(1, boxes, classes=("cat",))
    clean = clean_annotations(data, "", "file.json")
    evaluator = CleanCOCOEvaluator("keypoints", clean, ("keypoints",), keypoint_sigmas=[0.1, 0.1])
    evaluator.reset()
    instances = Instances((48, 64), pred_boxes=Boxes(torch.tensor([[8.0, 8.0, 32.0, 24.0]])))
    instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([1.0])
    # detectron2 predicts the centers of pixels
    instances.pred_keypoints = torch.tensor([[[10.5, 10.5, 1.0], [20.5, 20.5, 1.0]]])
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)
