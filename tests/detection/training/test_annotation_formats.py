"""The same dataset in different formats: training and evaluation are equal to the digit."""

import json
import math

import pytest

from fbnetv3.detection import config_file
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.errors import UsageError
from tests.detection.annotation_files import CLASSES, write_formats
from tests.detection.detectors import write_digits_config

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same dataset by format."""
    return write_formats(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def train(data, tmp_path_factory):
    """Train on the dataset in a format. Return the losses, the results, and the detections.

    The config names other annotations, which DATASETS.CUSTOM.DATA replaces.
    """
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    write_digits_config(config, data["coco"])

    def run(name):
        folder = tmp_path_factory.mktemp(name)
        overrides = {
            "DATASETS.CUSTOM.DATA": data[name],
            "MODEL.ROI_HEADS.NUM_CLASSES": 0,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
            "SOLVER.MAX_ITER": STEPS,
            "SOLVER.BASE_LR": 0.01,
            "MODEL_EMA.DECAY": 0.5,
            "DATASETS.TEST": "('custom_train','custom_test')",
            "OUTPUT_DIR": folder,
        }
        cfg = load_detection_config(config, [str(item) for pair in overrides.items() for item in pair])
        assert len(CLASSES) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
        result = train_detector(cfg)
        metrics = [json.loads(line) for line in result.run_folder.metrics.read_text().splitlines()]
        losses = {key: value for line in metrics for key, value in line.items() if "loss" in key}
        detections = [
            (detection["image_id"], detection["bbox"], detection["score"])
            for dataset in cfg.DATASETS.TEST
            for detection in json.loads(
                (folder / "inference" / dataset / "coco_instances_results.json").read_text()
            )
        ]
        return losses, result.results, detections

    return run


@pytest.fixture(scope="module")
def coco_run(train):
    """The run on the dataset in COCO's format."""
    return train("coco")


@pytest.mark.parametrize("name", ["lvis", "yolo", "voc", "csv"])
def test_a_run_is_the_same_in_every_format(train, coco_run, name):
    losses, results, detections = train(name)
    expected_losses, expected_results, expected_detections = coco_run
    assert len(losses) >= 5 and losses == expected_losses
    assert len(detections) > 50 and detections == expected_detections
    for dataset, tasks in expected_results.items():
        assert math.isfinite(tasks["bbox"]["AP"])
        assert results[dataset]["bbox"] == pytest.approx(tasks["bbox"], abs=0, rel=0, nan_ok=True)


def test_the_number_of_classes_needs_a_dataset():
    with pytest.raises(
        UsageError, match=r"MODEL.ROI_HEADS.NUM_CLASSES 0 means as many as the dataset has, but no"
    ):
        load_detection_config(config_file("finetune_fbnetv3_a_C4"))
