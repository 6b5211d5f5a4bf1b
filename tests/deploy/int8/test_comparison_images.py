"""The images of an int8 export: how many there are, and that no image is used twice."""

import logging

import numpy as np
import pytest

from fbnetv3.deploy.int8.comparison_images import (
    agreement_bound,
    select_images,
    warn_if_few_calibration_images,
    warn_if_few_comparison_images,
)
from fbnetv3.errors import DataError


def read(value):
    if value < 0:
        raise DataError(f"{value}: corrupt image")
    return np.array([value])


def test_images_of_the_calibration_are_not_compared(caplog):
    selection = select_images([1, 2, 3], [3, 4, 1, 5], read)
    assert (selection.calibration, selection.comparison) == ([0, 1, 2], [1, 3])
    assert selection.counts == {"shared_images": 2}
    assert "2 of the images to compare on are also used for calibration: they are left out" in caplog.text
    with pytest.raises(DataError, match="all images to compare on are also used for calibration"):
        select_images([1, 2], [2], read)


def test_corrupt_images_are_skipped(caplog):
    selection = select_images([1, -2, 3], [-7, 8, 9], read)
    assert (selection.calibration, selection.comparison) == ([0, 2], [1, 2])
    assert selection.counts == {"corrupt_images": 2}
    assert caplog.messages == ["2 corrupt images are skipped: -2: corrupt image, -7: corrupt image"]


def test_too_few_readable_images():
    assert select_images([], [1, -1], read).comparison == [0]
    with pytest.raises(
        DataError, match="only 1 of 3 images to compare on can be read, which is too few: -2"
    ):
        select_images([], [1, -1, -2], read)


def test_wilson_bound():
    # The end of the interval solves (p - p0)^2 = z^2 p0 (1 - p0) / n with z = 1.95996
    for agreement, count in ((98, 50), (98, 1000), (100, 20), (0, 20)):
        p, p0 = agreement / 100, agreement_bound(agreement, count) / 100
        assert (p - p0) ** 2 == pytest.approx(1.959964**2 * p0 * (1 - p0) / count, abs=1e-9)
        assert 0 <= p0 <= p
    assert agreement_bound(100, 20) == pytest.approx(100 * 20 / (20 + 1.959964**2))


def test_few_images_are_warned_of(caplog):
    caplog.set_level(logging.WARNING)
    warn_if_few_calibration_images(50)
    warn_if_few_comparison_images("int8", 200, 98.0, 95.0)
    assert not caplog.messages
    warn_if_few_calibration_images(49)
    warn_if_few_comparison_images("int8", 20, 100.0, 83.887)
    assert "calibrated on only 49 images" in caplog.messages[0] and "at least 50" in caplog.messages[0]
    assert "only 20 images: 100.00% agreement there means at least 83.9% on others" in caplog.messages[1]
