"""Classifiers' configs and detectors' told apart, without importing detectron2."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fbnetv3.config.loading import read_config_file
from fbnetv3.errors import UsageError

# Sections that detectron2's configs have and a classifier's have not.
_SECTIONS = {"DATASETS", "DATALOADER", "MODEL_EMA", "TEST"}
_OF_MODEL = {"ANCHOR_GENERATOR", "BACKBONE", "FBNETV3", "FPN", "META_ARCHITECTURE", "RETINANET", "ROI_HEADS", "RPN"}
# Sections that only a classifier's have.
_OF_CLASSIFIERS = {"CHECKPOINT", "DATA", "DISTILL", "EMA", "EVAL", "RECIPE"}


def is_detection_config(file: str | os.PathLike) -> bool:
    """Whether a config file, followed through its `_BASE_` files, is one of detectron2's kind.

    It is if it has a section DATASETS, DATALOADER, TEST or MODEL_EMA, or a key such as MODEL.META_ARCHITECTURE.

    Raises:
        UsageError: no such file, not YAML, or a config of both kinds.
    """
    values = read_config_file(str(file))
    theirs = sorted(_SECTIONS & set(values)) + [f"MODEL.{key}" for key in sorted(_OF_MODEL & _keys(values, "MODEL"))]
    classifiers = sorted(_OF_CLASSIFIERS & set(values))
    if theirs and classifiers:
        raise UsageError(
            f"{file}: has keys of a detector ({', '.join(theirs[:3])}) and of a classifier ({', '.join(classifiers)}): "
            "it can be the config of one only"
        )
    return bool(theirs)


def _keys(values: Mapping, section: str) -> set[str]:
    found = values.get(section)
    return set(found) if isinstance(found, Mapping) else set()
