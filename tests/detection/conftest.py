"""Fixtures of the detection tests, which are skipped without detectron2."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.modeling.weight_files import weight_by_formula
from tests.tools.conftest import tool  # noqa: F401 - a fixture

if find_spec("detectron2") is None:  # optional: python tools/install_detectron2.py
    collect_ignore_glob = ["test_*.py", "*/test_*.py"]


@pytest.fixture
def small_cfg():
    """Config of a C4 detector with few layers, for 5 classes, on the CPU."""
    from tests.detection.detectors import small_config

    return small_config()


@pytest.fixture(scope="session")
def released():
    """Recorded values of the released A C4 detector, and the weights that its outputs were computed with."""
    facts = json.loads(Path(__file__).with_name("published_detector_a_c4.json").read_text())
    return facts, {key: weight_by_formula(key, shape) for key, shape in facts["shapes"].items()}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Scenes of digits in COCO's format: train.json, test.json, and the image folders train and test."""
    from fbnetv3.data.digit_scenes import write_digit_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_digit_scenes(folder, num_train=8, num_test=3)
    return folder


@pytest.fixture(scope="session")
def digits_config(scenes, tmp_path_factory):
    """Config that trains on the scenes in a second: steps of two small images, in two sizes, flipped or not."""
    from tests.detection.detectors import write_digits_config

    return write_digits_config(tmp_path_factory.mktemp("config") / "digits.yaml", scenes)
