"""The accuracy by which an int8 detector is judged: that of the exported detector, on the classes by name."""

import json

import numpy as np
import pytest
import torch

from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.export.int8_images import detector_precision_settings
from fbnetv3.detection.recorded_detectors import describe_detector
from fbnetv3.detection.training.detector_setup import build_detector

DIGITS = {digit + 1: str(digit) for digit in range(10)}
OTHER_NAMES = [f"digit {digit}" for digit in range(10)]


class NoObjects:
    """An exported detector that detects nothing."""

    def detect(self, pixels):
        return DetectionArrays(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))


@pytest.fixture
def weights(digits_config, tmp_path):
    """Weights that record their classes."""
    cfg = load_detection_config(digits_config)
    metadata = describe_detector(cfg, DIGITS, {}).to_metadata()
    torch.save({"model": build_detector(cfg).state_dict(), "metadata": metadata}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.mark.parametrize("names", [None, OTHER_NAMES])
def test_accuracy_needs_neither_the_names_of_the_export_nor_augmentation(
    digits_config, weights, names, caplog
):
    caplog.set_level("INFO")
    cfg = load_detection_config(digits_config, ["TEST.AUG.ENABLED", "True"])
    settings = detector_precision_settings(cfg, weights, names)
    assert len(settings.images) == 3 and len(settings.calibration) == 8
    for precision in ("float32", "int8"):
        assert settings.average_precision(NoObjects(), precision) == 0
        assert caplog.messages[-1].startswith(f"custom_test, {precision}: AP 0.00")


def test_without_objects_in_the_test_images_agreement_decides(digits_config, weights, scenes, tmp_path):
    """AP is NaN there, so it cannot drop."""
    data = json.loads((scenes / "test.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**data, "annotations": []}))
    test = ["DATASETS.CUSTOM.TEST_ANNOTATIONS", str(tmp_path / "empty.json")]
    settings = detector_precision_settings(load_detection_config(digits_config, test), weights)
    assert settings.average_precision is None and settings.required_agreement == 90
