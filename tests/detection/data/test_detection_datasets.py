"""Datasets are loaded with clean annotations, whoever registered them."""

import json
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from fbnetv3.data.classes.class_matching import ClassMismatchError
from fbnetv3.detection.data import detection_datasets
from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.detection_datasets import (
    load_clean_annotations,
    load_dataset_dicts,
    prepare_datasets,
    register_annotations,
)
from fbnetv3.detection.training.detector_evaluation import _build_evaluator
from fbnetv3.errors import DataError
from fbnetv3.training.processes.distributed import SINGLE_PROCESS
from tests.detection.coco_files import annotation, dataset, save_dataset
from tests.detection.detectors import small_config


@pytest.fixture
def name(request):
    """The name of a dataset, which is forgotten after the test."""
    name = request.node.name
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def boxes(dicts):
    return [[(a["bbox"], a["category_id"]) for a in record["annotations"]] for record in dicts]


HALF_OUTSIDE = dataset(2, [annotation(0, bbox=(-16, 8, 32, 16)), annotation(0, 2, 2, (8, 8, 0, 4))])


def test_a_file_registered_by_detectron2_is_cleaned(tmp_path, name):
    """detectron2's own loader fails on repeated annotation ids."""
    file, root = save_dataset(tmp_path, HALF_OUTSIDE)
    register_coco_instances(name, {}, str(file), str(root))
    assert boxes(load_dataset_dicts(name)) == [[([0, 8, 16, 16], 0)], []]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}


def test_a_changed_file_is_read_again(tmp_path, name):
    file, root = save_dataset(tmp_path, dataset(2))
    register_coco_instances(name, {}, str(file), str(root))
    assert load_clean_annotations(name) is load_clean_annotations(name)
    file.write_text(json.dumps(dataset(2, [annotation()])))
    assert boxes(load_dataset_dicts(name)) == [[([8, 8, 24, 16], 0)], []]
    file.write_text(json.dumps(dataset(2, classes=("cat", "cow"))))
    with pytest.raises(
        DataError, match="its categories differ from the classes that .* was registered with"
    ):
        load_dataset_dicts(name)


def test_annotations_of_another_format_are_registered_by_a_function(name):
    register_annotations(name, lambda: RawAnnotations(HALF_OUTSIDE, "/images", "labels"))
    assert boxes(DatasetCatalog.get(name)) == [[([0, 8, 16, 16], 0)], []]
    assert DatasetCatalog.get(name)[0]["file_name"] == "/images/1.png"


def test_class_indices_follow_the_detectors_names(name):
    register_annotations(
        name, lambda: RawAnnotations(dataset(2, [annotation(1), annotation(2, 2, 2)]), "", "a")
    )
    box = [8, 8, 24, 16]
    assert boxes(load_dataset_dicts(name, ["dog", "bird", "cat"])) == [[(box, 2)], [(box, 0)]]
    with pytest.raises(ClassMismatchError, match=r"the detector lacks dog: .* has 2 classes \(cat, dog\)"):
        load_dataset_dicts(name, ["cat", "bird"])


def own_dicts():
    box = {"bbox": [-16, 8, 16, 24], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    outside = {**box, "bbox": [70, 8, 90, 24]}
    record = {"height": 48, "width": 64, "annotations": [box, outside]}
    return [
        {**record, "file_name": f"/nowhere/{i}.png", "image_id": f"b{3 - i}", "weather": i}
        for i in range(3)
    ]


def test_dicts_of_ones_own_function_are_cleaned_and_keep_their_other_keys(name):
    DatasetCatalog.register(name, own_dicts)
    dicts = load_dataset_dicts(name)
    assert boxes(dicts) == [[([0, 8, 16, 16], 1)]] * 3
    assert [(record["image_id"], record["weather"]) for record in dicts] == [
        ("b1", 2),
        ("b2", 1),
        ("b3", 0),
    ]


@pytest.mark.parametrize("classes", [None, ["cat", "dog", "cow"]])
def test_dicts_of_ones_own_function_can_be_evaluated(name, classes):
    """Without a folder and a file, and without names of the classes."""
    DatasetCatalog.register(name, own_dicts)
    cfg = small_config()
    evaluator = _build_evaluator(cfg, name, None, classes)
    evaluator.reset()
    evaluator.process([{"image_id": "b1"}], [{}])
    evaluator._predictions = [{"image_id": "b1", "instances": []}]
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] == results["AP-1"] == 0 and math.isnan(results["AP-0"])


def test_dicts_that_are_kept_in_memory_are_not_relabeled_twice(name):
    """Of Pascal VOC, whose annotations are used as they are."""
    dicts = own_dicts()
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], evaluator_type="pascal_voc")
    for _ in range(2):
        loaded = load_dataset_dicts(name, ["dog", "bird", "cat"])
        assert {a["category_id"] for record in loaded for a in record["annotations"]} == {0}


def test_problems_of_ones_own_dicts_are_found_before_training(name):
    DatasetCatalog.register(name, own_dicts)
    MetadataCatalog.get(name).thing_classes = ["cat"]
    cfg = small_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    with pytest.raises(DataError) as error:
        prepare_datasets(cfg, SINGLE_PROCESS, training=True)
    for text in (f"{name}: missing images (3): /nowhere/", "annotations[0] of /nowhere/0.png (category 1)"):
        assert text in str(error.value)


def test_digit_scenes_are_those_of_the_current_cache_folder(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_datasets, "ensure_digit_scenes", lambda: None)
    monkeypatch.setattr(detection_datasets, "digit_scenes_folder", lambda: scenes)
    dicts = load_dataset_dicts("digit_scenes_test")
    assert len(dicts) == 3 and dicts[0]["file_name"] == str(scenes / "test" / "000001.png")
    assert MetadataCatalog.get("digit_scenes_test").thing_classes == list("0123456789")
    (tmp_path / "test.json").write_text(json.dumps(dataset(2)))
    monkeypatch.setattr(detection_datasets, "digit_scenes_folder", lambda: tmp_path)
    assert len(load_dataset_dicts("digit_scenes_test")) == 2
