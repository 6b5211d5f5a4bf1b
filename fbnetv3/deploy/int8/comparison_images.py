"""Select the images that an int8 export is calibrated and compared on: readable ones, and different ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fbnetv3.errors import DataError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

MIN_CALIBRATION = 50
MIN_COMPARISON = 200
_MIN_READABLE = 0.5  # share of the images
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ImageSelection:
    """Indices of the images to use.

    Attributes:
        calibration: images to calibrate on.
        comparison: images to compare on, none of which equals one of the calibration.
        counts: numbers of images that are not used, for the manifest: "corrupt_images", and "shared_images", which are
            left out of the comparison; without those that are 0.
    """

    calibration: list[int]
    comparison: list[int]
    counts: dict[str, int] = field(default_factory=dict)


def select_images(
    calibration: Sequence[Any], comparison: Sequence[Any], read: Callable[[Any], np.ndarray]
) -> ImageSelection:
    """Select the images that can be read, and compare on those alone that are not used for calibration.

    Args:
        calibration: images to calibrate on; may be empty.
        comparison: images to compare on.
        read: returns an image as the network's input, by whose values images are the same; raises a DataError for a
            corrupt image.

    Raises:
        DataError: fewer than half of the images of one kind can be read, or none are left to compare on.
    """
    errors: list[str] = []
    calibration_digests = _read_all(calibration, read, "calibrate", errors)
    comparison_digests = _read_all(comparison, read, "compare", errors)
    if errors:
        logger.warning("%d corrupt images are skipped: %s", len(errors), first_few(errors))
    used = set(calibration_digests.values())
    selected = [index for index, digest in comparison_digests.items() if digest not in used]
    shared = len(comparison_digests) - len(selected)
    if shared:
        logger.warning(
            "%d of the images to compare on are also used for calibration: they are left out", shared
        )
    if not selected:
        raise DataError("all images to compare on are also used for calibration: calibrate on other images")
    counts = {"corrupt_images": len(errors), "shared_images": shared}
    used_counts = {name: count for name, count in counts.items() if count}
    return ImageSelection(list(calibration_digests), selected, used_counts)


def _read_all(
    images: Sequence[Any], read: Callable[[Any], np.ndarray], purpose: str, errors: list[str]
) -> dict[int, bytes]:
    """Return a digest of each image that can be read, by its index; append the messages of others to `errors`."""
    digests = {}
    for index, image in enumerate(images):
        try:
            digests[index] = hashlib.sha256(read(image).tobytes()).digest()
        except DataError as error:
            errors.append(str(error))
    if len(digests) < _MIN_READABLE * len(images):
        raise DataError(
            f"only {len(digests)} of {len(images)} images to {purpose} on can be read, which is too few: "
            f"{errors[-1]}"
        )
    return digests


def warn_if_few_calibration_images(count: int) -> None:
    """Warn of ranges that may miss values of other images."""
    if count < MIN_CALIBRATION:
        logger.warning(
            "int8 is calibrated on only %d images: values that do not occur in them may be cut off; use at least %d",
            count,
            MIN_CALIBRATION,
        )


def warn_if_few_comparison_images(precision: str, count: int, agreement: float, bound: float) -> None:
    """Warn that a comparison on few images says little; `agreement` and its lower bound are in percent."""
    if count < MIN_COMPARISON:
        logger.warning(
            "%s is compared on only %d images: %.2f%% agreement there means at least %.1f%% on others, with 95%% "
            "confidence; use at least %d",
            precision,
            count,
            agreement,
            bound,
            MIN_COMPARISON,
        )


def agreement_bound(agreement: float, count: int) -> float:
    """Return the lower end of Wilson's 95% interval for an agreement among `count` images, all in percent."""
    interval = binomtest(round(agreement / 100 * count), count).proportion_ci(_CONFIDENCE, method="wilson")
    return 100 * float(interval.low)
