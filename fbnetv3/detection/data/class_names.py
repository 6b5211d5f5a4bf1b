"""Names of a detector's classes, and the category ids of its results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fbnetv3.detection.data.coco_annotations import read_annotations
from fbnetv3.detection.data.detection_datasets import num_classes_setting
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import first_few

_COCO = "coco_2017_val"
_Categories = Sequence[Mapping[str, Any]]  # "categories" of a COCO-format file


@dataclass(frozen=True)
class DetectorClasses:
    """Names and category ids of a detector's classes, by class index."""

    names: tuple[str, ...]
    category_ids: tuple[int | str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The list "categories" of a COCO-format file."""
        pairs = zip(self.category_ids, self.names, strict=True)
        return [{"id": id, "name": name} for id, name in pairs]


def classes_from_categories(categories: _Categories, num_classes: int | None = None) -> DetectorClasses:
    """Return the classes of a COCO-format file, ordered by category id as in detectron2."""
    ordered = sorted(categories, key=lambda category: category["id"])
    names = tuple(category["name"] for category in ordered)
    if num_classes not in (None, len(names)):
        raise UsageError(
            f"the annotations have {len(names)} categories ({first_few(names)}), but the detector has {num_classes} "
            "classes: pass annotations with the categories that it was trained on"
        )
    return DetectorClasses(names, tuple(category["id"] for category in ordered))


def detector_classes(cfg: CfgNode, categories: _Categories | None = None) -> DetectorClasses:
    """Return the classes of a config's detector.

    Args:
        cfg: the detector's config.
        categories: the "categories" list of a COCO-format file. If None, the classes come from the datasets of the
            config, test datasets first: from detectron2's metadata, or from the annotation file if it exists.
            Otherwise a detector of 80 classes has COCO's names and ids, and any other "class 1" and so on, with ids
            from 1.
    """
    _, num_classes = num_classes_setting(cfg)
    if categories is not None:
        return classes_from_categories(categories, num_classes)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, _COCO):
        classes = _classes_from_catalog(name)
        if classes is not None and len(classes) == num_classes:
            return classes
    numbers = tuple(range(1, num_classes + 1))
    return DetectorClasses(tuple(f"class {n}" for n in numbers), numbers)


def classes_from_names(names: Sequence[str], categories: _Categories | None = None) -> DetectorClasses:
    """Return the classes of a detector that stores only their names, such as an exported one.

    Args:
        names: class names by class index.
        categories: the "categories" list of a COCO-format file, whose names and ids are used instead. If None, COCO's
            names have COCO's ids, and other names have ids from 1.
    """
    if categories is not None:
        return classes_from_categories(categories, len(names))
    coco = _classes_from_catalog(_COCO)
    if coco is not None and coco.names == tuple(names):
        return coco
    return DetectorClasses(tuple(names), tuple(range(1, len(names) + 1)))


def _classes_from_catalog(name: str) -> DetectorClasses | None:
    """Return the classes of a registered dataset, or None if they are unknown until it is loaded."""
    if name not in MetadataCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    if names := metadata.get("thing_classes"):
        # Category id -> class index; not every dataset has it
        index_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(index_of_id, key=index_of_id.get) if index_of_id else range(len(names))
        return DetectorClasses(tuple(names), tuple(ids))
    file = metadata.get("json_file")
    if not file or not os.path.isfile(file):
        return None
    return classes_from_categories(read_annotations(file, ("categories",))["categories"])
