"""A detector's inputs are those that its classifier was trained on, or the difference is an error."""

import logging

import pytest
import torch

import fbnetv3
from fbnetv3.arch import get_arch
from fbnetv3.data import Preprocessing
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.models.classifier_preprocessing import (
    classifier_inputs,
    use_classifier_preprocessing,
)
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.network_record import NetworkRecord
from tests.detection.detectors import small_config

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
# 255 times these
PIXEL_MEAN, PIXEL_STD = [127.5, 102.0, 76.5], [51.0, 63.75, 25.5]


@pytest.fixture
def weights(tmp_path):
    """Return a classifier's checkpoint that records mean and standard deviation of its own."""
    model = fbnetv3.create_model("fbnetv3_a0", num_classes=2)
    record = NetworkRecord(get_arch("fbnetv3_a0"), 3, ("a", "b"), Preprocessing(96, 96, MEAN, STD))
    path = tmp_path / "classifier.pth"
    torch.save({"model": model.state_dict(), **record.to_metadata()}, path)
    return str(path)


def config(weights, choice="check", **model_keys):
    cfg = small_config()
    cfg.MODEL.FBNETV3.WEIGHTS = weights
    cfg.MODEL.FBNETV3.PREPROCESSING = choice
    for key, value in model_keys.items():
        cfg.MODEL[key] = value
    return cfg


def test_inputs_of_a_classifier():
    """Classifiers normalize RGB, or gray, in [0, 1]; detectors normalize values up to 255."""
    assert classifier_inputs(Preprocessing(96, 96, MEAN, STD)) == ("RGB", PIXEL_MEAN, PIXEL_STD)
    assert classifier_inputs(Preprocessing(28, 28, (0.5,), (0.2,))) == ("L", [127.5], [51.0])


def test_other_inputs_are_refused_with_the_values_to_set(weights):
    with pytest.raises(UsageError) as error:
        use_classifier_preprocessing(config(weights))
    message = str(error.value)
    assert f"{weights} was trained on other inputs than INPUT.FORMAT BGR" in message
    assert f"set INPUT.FORMAT RGB MODEL.PIXEL_MEAN {PIXEL_MEAN} MODEL.PIXEL_STD {PIXEL_STD}" in message
    assert "MODEL.FBNETV3.PREPROCESSING classifier" in message and "\n" not in message


def test_the_order_of_channels_matters(weights):
    """The right values, in the order of BGR."""
    cfg = config(weights, PIXEL_MEAN=PIXEL_MEAN[::-1], PIXEL_STD=PIXEL_STD[::-1])
    with pytest.raises(UsageError, match="INPUT.FORMAT RGB"):
        use_classifier_preprocessing(cfg)


def test_the_classifiers_values_are_taken_over(weights, caplog):
    with caplog.at_level(logging.INFO, "fbnetv3"):
        cfg = use_classifier_preprocessing(config(weights, "classifier"))
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ("RGB", PIXEL_MEAN, PIXEL_STD)
    assert f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN {PIXEL_MEAN}" in caplog.text
    # Nothing is left to change
    assert use_classifier_preprocessing(cfg) is cfg


@pytest.mark.parametrize("changes", [{"choice": "config"}, {"WEIGHTS": "detector.pth"}])
def test_the_configs_values_stay_on_request_and_for_a_detectors_weights(weights, changes):
    cfg = config(weights, **changes)
    assert use_classifier_preprocessing(cfg) is cfg


def test_weights_without_a_record_are_mentioned(tmp_path, caplog):
    path = str(tmp_path / "timm.pth")
    torch.save(fbnetv3.create_model("fbnetv3_a0").state_dict(), path)
    cfg = config(path)
    with caplog.at_level(logging.INFO, "fbnetv3"):
        assert use_classifier_preprocessing(cfg) is cfg
    assert "timm.pth does not record its preprocessing: images have INPUT.FORMAT BGR" in caplog.text


def test_the_shipped_config_suits_the_published_classifier():
    cfg = load_detection_config("configs/coco/faster_rcnn_fbnetv3_a_C4_classifier.yaml")
    assert cfg.MODEL.FBNETV3.PREPROCESSING == "check"
    assert use_classifier_preprocessing(cfg) is cfg


def test_training_compares_them(tool, digits_config, weights, tmp_path):
    ran = tool(
        "train_net",
        "--config",
        digits_config,
        "OUTPUT_DIR",
        tmp_path / "run",
        "MODEL.FBNETV3.WEIGHTS",
        weights,
    )
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "was trained on other inputs" in ran.err
    assert not (tmp_path / "run").exists()
