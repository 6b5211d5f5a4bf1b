"""Your own dataset, as `DATASETS.CUSTOM` describes it: its splits, formats and classes."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection

from detectron2.config import CfgNode

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.formats import ANNOTATION_FORMATS, AnnotationSource
from fbnetv3.detection.data.formats.annotation_source import AUTO
from fbnetv3.errors import DataError, UsageError, suggest
from fbnetv3.utils.files import expand_path

logger = logging.getLogger(__name__)

CUSTOM_DATASETS = {"custom_train": "TRAIN", "custom_test": "TEST"}
_TRAIN_SPLIT = "train"
_TEST_SPLITS = ("val", "test")


def select_custom_data(cfg: CfgNode) -> None:
    """Check the keys of `DATASETS.CUSTOM`, set training and test annotations from the key DATA, and clear it.

    The config then says which split was chosen, and needs no files until the dataset is read.

    Raises:
        UsageError: a key has a wrong value.
        DataError: DATA does not exist, or has no training split.
    """
    custom = cfg.DATASETS.CUSTOM
    for key, choices in {"FORMAT": (AUTO, *ANNOTATION_FORMATS.names()), "TEST_SPLIT": _TEST_SPLITS}.items():
        if custom[key] not in choices:
            raise UsageError(
                f"DATASETS.CUSTOM.{key} {custom[key]!r} is unknown: {suggest(custom[key], choices)}"
            )
    if custom.DATA:
        _divide_data(custom)
    for part in CUSTOM_DATASETS.values():
        if custom[f"{part}_IMAGES"] and not custom[f"{part}_ANNOTATIONS"]:
            raise UsageError(
                f"DATASETS.CUSTOM.{part}_IMAGES is set, but DATASETS.CUSTOM.{part}_ANNOTATIONS is not: set it, too"
            )


def drop_unrelated_images(cfg: CfgNode, stated: Collection[str]) -> None:
    """Do not silently combine annotations of the command line with an image folder that a config or checkpoint has.

    Without new annotations, or if the folder is gone, `TRAIN_IMAGES` or `TEST_IMAGES` is cleared, so that images are
    looked for near the annotations. Otherwise it stays, and a line of the log says so.

    Args:
        cfg: the config with the values of the command line.
        stated: keys of the command line.
    """
    custom = cfg.DATASETS.CUSTOM
    for part in CUSTOM_DATASETS.values():
        key = f"DATASETS.CUSTOM.{part}_IMAGES"
        folder, annotations = custom[f"{part}_IMAGES"], custom[f"{part}_ANNOTATIONS"]
        if not folder or key in stated or f"DATASETS.CUSTOM.{part}_ANNOTATIONS" not in stated:
            continue
        if not annotations or not expand_path(folder).is_dir():
            custom[f"{part}_IMAGES"] = ""
        else:
            logger.warning(
                "the images of %s are looked for in %s, as before: if they are elsewhere, set %s",
                annotations,
                folder,
                key,
            )


def _divide_data(custom: CfgNode) -> None:
    path = expand_path(custom.DATA)
    source = AnnotationSource(path, format=custom.FORMAT, split=_TRAIN_SPLIT).resolve()
    if not source.split:
        raise DataError(
            f"{path}: is not divided into training and validation: set DATASETS.CUSTOM.TRAIN_ANNOTATIONS and "
            "DATASETS.CUSTOM.TEST_ANNOTATIONS instead of DATASETS.CUSTOM.DATA"
        )
    # The requested split, or else the other one
    splits = source.reader.find_splits(path)
    test = next((split for split in (custom.TEST_SPLIT, *_TEST_SPLITS) if split in splits), "")
    for part in CUSTOM_DATASETS.values():
        if custom[f"{part}_ANNOTATIONS"]:  # of a dataset that DATA replaces
            custom[f"{part}_IMAGES"] = ""
    custom.TRAIN_ANNOTATIONS = str(path)
    custom.TEST_ANNOTATIONS = str(path) if test else ""
    custom.TEST_SPLIT = test or custom.TEST_SPLIT
    evaluation = f"evaluation on {test}" if test else "no split to evaluate on"
    logger.info("%s: training on %s, %s", path, _TRAIN_SPLIT, evaluation)
    custom.DATA = ""


def custom_sources(cfg: CfgNode) -> dict[str, AnnotationSource]:
    """Return the annotations of the datasets of `DATASETS.CUSTOM` by name, without reading them."""
    custom = cfg.DATASETS.CUSTOM
    sources: dict[str, AnnotationSource] = {}
    for name, part in CUSTOM_DATASETS.items():
        annotations, images = (custom[f"{part}_{key}"] for key in ("ANNOTATIONS", "IMAGES"))
        if annotations:
            sources[name] = AnnotationSource(
                expand_path(annotations),
                expand_path(images) if images else None,
                custom.FORMAT,
                _TRAIN_SPLIT if part == "TRAIN" else custom.TEST_SPLIT,
                class_source=sources.get("custom_train"),
            )
    return sources


def read_custom_annotations(name: str, source: AnnotationSource) -> RawAnnotations:
    """Read the annotations of a dataset of `DATASETS.CUSTOM`, and log what the reader decided."""
    path = source.annotations
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    annotations = source.read()
    if source.format == AUTO:
        logger.info("%s: %s is %s", name, path, source.resolve().reader.title)
    for note in annotations.notes:
        logger.info("%s: %s", name, note)
    return annotations
