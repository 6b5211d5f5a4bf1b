"""What the tests of detectors share; without detectron2 there are none."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.modeling.test_weights import weight_by_formula

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
