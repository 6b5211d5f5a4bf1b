"""Datasets for detectors: registration with detectron2, loading, and checks before training."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from fbnetv3.data.digit_scenes import digit_scenes, digit_scenes_folder
from fbnetv3.detection.data.coco_annotations import check_annotations
from fbnetv3.errors import DataError, UsageError, suggest
from fbnetv3.utils.text import describe_error, first_few

OWN_DATASETS = {"own_train": "TRAIN", "own_test": "TEST"}
_DIGIT_SCENES = "digit_scenes_"


def register_own_datasets(cfg: CfgNode) -> None:
    """Register the datasets of `DATASETS.OWN` as "own_train" and "own_test", and select them.

    `DATASETS.TRAIN` becomes "own_train". `DATASETS.TEST` may name both, to evaluate on the training images too;
    otherwise it becomes "own_test", or empty if there is none.
    """
    own = cfg.DATASETS.OWN
    for name, part in OWN_DATASETS.items():
        json_file = own[f"{part}_JSON"]
        image_root = own[f"{part}_IMAGES"]
        if bool(json_file) != bool(image_root):
            raise UsageError(f"DATASETS.OWN.{part}_JSON and DATASETS.OWN.{part}_IMAGES go together: set both")
        # An earlier config in the same process may have registered different files
        for catalog in (DatasetCatalog, MetadataCatalog):
            with contextlib.suppress(KeyError):
                catalog.remove(name)
        if json_file:
            _register_coco_dataset(name, Path(json_file).expanduser(), Path(image_root).expanduser())
    # Select the registered datasets
    if own.TRAIN_JSON:
        cfg.DATASETS.TRAIN = ("own_train",)
    if own.TRAIN_JSON or own.TEST_JSON:
        requested = tuple(name for name in cfg.DATASETS.TEST if name in OWN_DATASETS)
        default = ("own_test",) if own.TEST_JSON else ()
        cfg.DATASETS.TEST = requested or default


def _register_coco_dataset(name: str, json_file: Path, image_root: Path) -> None:
    DatasetCatalog.register(name, lambda: load_coco_json(str(json_file), str(image_root), name))
    _set_metadata(name, json_file, image_root)


def _set_metadata(name: str, json_file: Path, image_root: Path) -> None:
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=str(json_file), image_root=str(image_root), evaluator_type="coco")


def _register_digit_scenes() -> None:
    """Register the scenes of handwritten digits, which are drawn on first use."""
    for split in ("train", "test"):
        name = f"{_DIGIT_SCENES}{split}"
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(_load_digit_scenes, name))
            _set_digit_scenes_metadata(name)


def _set_digit_scenes_metadata(name: str) -> None:
    folder = digit_scenes_folder()
    split = name.removeprefix(_DIGIT_SCENES)
    json_file = folder / f"{split}.json"
    # detectron2 refuses to change metadata, which is necessary if the cache folder has changed
    if MetadataCatalog.get(name).get("json_file") != str(json_file):
        MetadataCatalog.pop(name)
        _set_metadata(name, json_file, folder / split)


def _load_digit_scenes(name: str) -> list[dict[str, Any]]:
    digit_scenes()
    _set_digit_scenes_metadata(name)
    metadata = MetadataCatalog.get(name)
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def load_dataset_dicts(name: str) -> list[dict[str, Any]]:
    """Load the images of a registered dataset with their annotations, in detectron2's dataset dict format."""
    registered = DatasetCatalog.list()
    if name not in registered:
        raise UsageError(f"unknown dataset '{name}': {suggest(name, registered)}")
    json_file = MetadataCatalog.get(name).get("json_file", name)
    try:
        dicts = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        is_own = name in OWN_DATASETS
        setting = "DATASETS.OWN" if is_own else "DETECTRON2_DATASETS to the folder that contains it"
        raise DataError(f"{error.filename or json_file}: no such file ({name}): set {setting}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{json_file}: is not in COCO's format ({describe_error(error)})") from None
    if not dicts:
        raise DataError(f"{json_file}: has no images ({name})")
    return dicts


def check_datasets(cfg: CfgNode, names: Sequence[str], need_boxes: bool) -> None:
    """Check the annotation files and images of datasets; see `check_annotations`.

    Missing files and formats other than COCO's are left to `load_dataset_dicts`.

    Args:
        cfg: the config, which says whether masks are needed, and in which format.
        names: names of registered datasets.
        need_boxes: whether each dataset must have a box to train on.

    Raises:
        AnnotationError: all problems of the first dataset that has any.
    """
    mask_format = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
    for name in names:
        if name not in DatasetCatalog.list() or name.startswith(_DIGIT_SCENES):
            continue
        metadata = MetadataCatalog.get(name)
        json_file = metadata.get("json_file", "")
        is_coco = metadata.get("evaluator_type") == "coco"
        if is_coco and json_file and Path(json_file).is_file():
            check_annotations(json_file, metadata.image_root, mask_format=mask_format, need_boxes=need_boxes)


def num_classes_setting(cfg: CfgNode) -> tuple[str, int]:
    """Return the config key that holds the network's number of classes, and its value."""
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{section}.NUM_CLASSES", cfg.MODEL[section].NUM_CLASSES


def check_class_names(cfg: CfgNode, names: Sequence[str]) -> None:
    """Require that loaded datasets have the same classes, as many as the network."""
    key, num_classes = num_classes_setting(cfg)
    # Datasets without class names are skipped
    class_lists = [list(MetadataCatalog.get(name).get("thing_classes", [])) for name in names]
    named_classes = [(name, classes) for name, classes in zip(names, class_lists, strict=True) if classes]
    for name, classes in named_classes:
        count = len(classes)
        if count != num_classes:
            problem = f"{name} has {count} classes ({first_few(classes)}), but the network has {num_classes}"
            raise UsageError(f"{problem}: set {key} {count}")
    for (first, first_classes), (second, second_classes) in itertools.pairwise(named_classes):
        if first_classes != second_classes:
            difference = sorted(set(first_classes) ^ set(second_classes))
            problem = (
                f"different classes: {first_few(difference)}" if difference else "their classes in different orders"
            )
            raise UsageError(f"{first} and {second} have {problem}")


_register_digit_scenes()
