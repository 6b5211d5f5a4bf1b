"""Compare the inputs of a detector with those that its classifier's weights were trained on."""

from __future__ import annotations

import logging

import numpy as np
from detectron2.config import CfgNode

from fbnetv3.data import Preprocessing
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.network_record import read_network_record

logger = logging.getLogger(__name__)

PREPROCESSING_CHOICES = ("check", "classifier", "config")
_KEY = "MODEL.FBNETV3.PREPROCESSING"
_MAX_VALUE = 255  # detectors take pixels in [0, 255], classifiers in [0, 1]
_TOLERANCE = 0.05  # gray levels, by which configs round


def use_classifier_preprocessing(cfg: CfgNode) -> CfgNode:
    """Return the config with inputs that suit the classifier of `MODEL.FBNETV3.WEIGHTS`; see `PREPROCESSING`.

    Raises:
        UsageError: the inputs differ, and the config does not say which to use.
        WeightsError: the weights cannot be read.
    """
    weights = cfg.MODEL.FBNETV3.WEIGHTS
    choice = cfg.MODEL.FBNETV3.PREPROCESSING
    # A detector's weights replace the classifier's
    if not weights or cfg.MODEL.WEIGHTS or choice == "config":
        return cfg
    record = read_network_record(weights)
    if record is None:
        logger.info(
            "%s does not record its preprocessing: images have INPUT.FORMAT %s, MODEL.PIXEL_MEAN %s and PIXEL_STD %s",
            weights,
            cfg.INPUT.FORMAT,
            list(cfg.MODEL.PIXEL_MEAN),
            list(cfg.MODEL.PIXEL_STD),
        )
        return cfg
    input_format, mean, std = classifier_inputs(record.preprocessing)
    model = cfg.MODEL
    if input_format == cfg.INPUT.FORMAT and _equal(model.PIXEL_MEAN, mean) and _equal(model.PIXEL_STD, std):
        logger.info("images are normalized as for %s", weights)
        return cfg
    values = f"INPUT.FORMAT {input_format} MODEL.PIXEL_MEAN {mean} MODEL.PIXEL_STD {std}"
    if choice == "check":
        raise UsageError(
            f"MODEL.FBNETV3.WEIGHTS {weights} was trained on other inputs than INPUT.FORMAT {cfg.INPUT.FORMAT} "
            f"MODEL.PIXEL_MEAN {list(model.PIXEL_MEAN)} MODEL.PIXEL_STD {list(model.PIXEL_STD)}: set {values}, or "
            f"{_KEY} classifier to do so, or {_KEY} config to keep the config's"
        )
    logger.info("%s, as %s was trained", values, weights)
    adapted = cfg.clone()
    adapted.defrost()
    adapted.INPUT.FORMAT = input_format
    adapted.MODEL.PIXEL_MEAN = mean
    adapted.MODEL.PIXEL_STD = std
    adapted.freeze()
    return adapted


def classifier_inputs(preprocessing: Preprocessing) -> tuple[str, list[float], list[float]]:
    """Return `INPUT.FORMAT`, `MODEL.PIXEL_MEAN` and `MODEL.PIXEL_STD` that normalize images as a classifier does."""
    mean, std = (
        [round(_MAX_VALUE * value, 3) for value in values]
        for values in (preprocessing.mean, preprocessing.std)
    )
    return "RGB" if preprocessing.channels == 3 else "L", mean, std


def _equal(configured: list[float], expected: list[float]) -> bool:
    return len(configured) == len(expected) and np.allclose(configured, expected, rtol=0, atol=_TOLERANCE)
