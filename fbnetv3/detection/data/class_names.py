"""Names of a detector's classes, and the ids that categories have in results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from fbnetv3.detection.data.coco_annotations import read_annotations
from fbnetv3.detection.data.detection_datasets import class_count
from fbnetv3.errors import UsageError

_COCO = "coco_2017_val"


@dataclass(frozen=True)
class Classes:
    """What a detector's classes are called.

    Attributes:
        names: by number of the class.
        ids: the category's id in annotations and results, by number of the class.
    """

    names: tuple[str, ...]
    ids: tuple[int | str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """As COCO-format files list them."""
        return [{"id": id, "name": name} for id, name in zip(self.ids, self.names, strict=True)]


def classes_in(categories: Sequence[Mapping[str, Any]]) -> Classes:
    """The categories of a COCO-format file, in the order of their ids, as detectron2 numbers them."""
    ordered = sorted(categories, key=lambda category: category["id"])
    return Classes(tuple(c["name"] for c in ordered), tuple(c["id"] for c in ordered))


def classes_of(cfg: CfgNode, categories: Sequence[Mapping[str, Any]] | None = None) -> Classes:
    """Classes of a detector.

    Args:
        cfg: the detector's config.
        categories: of a COCO-format file. Without them, the data sets that the config names are asked, those to test
            on first: what detectron2 knows of them, or their file of annotations where it is there. Else a detector of
            80 classes has COCO's, with COCO's ids, and any other "class 1" and so on, with ids from 1.

    Raises:
        UsageError: the file has another number of categories than the detector classes.
        AnnotationError: a data set's file of annotations is damaged.
    """
    _, count = class_count(cfg)
    if categories is not None:
        return _annotated(categories, count)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        found = _known_to_detectron2(name)
        if found is not None and len(found) == count:
            return found
    coco = _known_to_detectron2(_COCO)
    if coco is not None and len(coco) == count:
        return coco
    return Classes(tuple(f"class {n}" for n in range(1, count + 1)), tuple(range(1, count + 1)))


def named_classes(names: Sequence[str], categories: Sequence[Mapping[str, Any]] | None = None) -> Classes:
    """Classes of a detector of which the names alone are known, such as an exported one.

    Args:
        names: by number of the class.
        categories: of a COCO-format file, which then has the names and ids. Without them, COCO's names have COCO's ids,
            and others ids from 1.

    Raises:
        UsageError: the file has another number of categories than there are names.
    """
    if categories is not None:
        return _annotated(categories, len(names))
    coco = _known_to_detectron2(_COCO)
    return coco if coco and coco.names == tuple(names) else Classes(tuple(names), tuple(range(1, len(names) + 1)))


def _annotated(categories: Sequence[Mapping[str, Any]], count: int) -> Classes:
    """The categories of a file, if there are so many."""
    found = classes_in(categories)
    if len(found) != count:
        raise UsageError(
            f"the annotations have {len(found)} categories ({', '.join(found.names[:3])}, ...), the detector "
            f"{count} classes: give the annotations that it was trained on, or those of the same categories"
        )
    return found


def _known_to_detectron2(name: str) -> Classes | None:
    """The classes of a registered data set, if they can be had without loading it."""
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
    if metadata is None:
        return None
    if names := metadata.get("thing_classes"):
        to_class = metadata.get("thing_dataset_id_to_contiguous_id") or {n: n for n in range(len(names))}
        return Classes(tuple(names), tuple(id for id, _ in sorted(to_class.items(), key=lambda item: item[1])))
    file = metadata.get("json_file")
    return classes_in(read_annotations(file, ("categories",))["categories"]) if file and os.path.isfile(file) else None
