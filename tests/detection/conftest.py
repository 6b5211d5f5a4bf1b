"""What the tests of detectors share; without detectron2 there are none."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.modeling.test_weights import weight_by_formula
from tests.tools.conftest import tool  # noqa: F401 - a fixture

if find_spec("detectron2") is None:  # optional: python tools/install_detectron2.py
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def small_cfg():
    """A C4 detector of few layers, for 5 classes, on the CPU."""
    from tests.detection.detectors import small_config

    return small_config()


@pytest.fixture(scope="session")
def released():
    """Facts about the released A C4 detector, and the weights that belong to its figures."""
    facts = json.loads(Path(__file__).with_name("published_detector_a_c4.json").read_text())
    return facts, {key: weight_by_formula(key, shape) for key, shape in facts["shapes"].items()}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A few scenes of digits in COCO's format: train.json, test.json, and the folders train and test."""
    from fbnetv3.data.digit_scenes import write_digit_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_digit_scenes(folder, train=8, test=3)
    return folder


@pytest.fixture(scope="session")
def digits_config(scenes, tmp_path_factory):
    """A training config for these that takes a second: steps of two small images, two sizes of them, flipped or not."""
    from tests.detection.detectors import write_digits_config

    return write_digits_config(tmp_path_factory.mktemp("config") / "digits.yaml", scenes)
