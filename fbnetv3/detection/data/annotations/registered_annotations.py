"""Clean annotations of datasets that are registered with detectron2, by whoever registered them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from fbnetv3.detection.data.annotations.annotation_ids import Id
from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations, clean_annotations
from fbnetv3.detection.data.annotations.coco_files import RawAnnotations, read_annotations
from fbnetv3.detection.data.annotations.dataset_dicts import dict_id, from_dataset_dicts
from fbnetv3.errors import DataError
from fbnetv3.utils.text import describe_error

# Annotations of larger datasets are read again when they are needed, to save memory
_MAX_KEPT = 100_000
_DETECTRON2_LOADERS = "detectron2.data.datasets"


def has_annotations(name: str) -> bool:
    """Return whether a dataset is trained and evaluated on boxes as COCO is; Pascal VOC, for one, is not."""
    return MetadataCatalog.get(name).get("evaluator_type", "coco") == "coco"


class AnnotationCache:
    """Loads the clean annotations of registered datasets and keeps them while their files do not change."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[list[Any], CleanAnnotations, Sequence[Mapping[str, Any]]]] = {}

    def load(self, name: str, **options: Any) -> CleanAnnotations:
        """Return the clean annotations of a dataset; see `load_clean_annotations`."""
        stamp = _stamp(name)
        if not options and name in self._loaded and self._loaded[name][0] == stamp:
            return self._loaded[name][1]
        self._loaded.pop(name, None)
        dicts: Sequence[dict[str, Any]] = ()
        if raw := _read_file(name):
            clean = clean_annotations(raw.data, raw.image_root, raw.source, **options)
            _set_classes(name, clean)
        else:
            dicts = load_own_dicts(name)
            clean = _clean_dicts(name, dicts, **options)
        if dicts or len(clean.annotations) <= _MAX_KEPT:
            self._loaded[name] = stamp, clean, dicts
        return clean

    def original_dicts(self, name: str) -> Mapping[Id, Mapping[str, Any]]:
        """Return the dicts of a dataset's own function by image id; empty if it is read from a file."""
        dicts = self._loaded[name][2] if name in self._loaded else ()
        return {dict_id(record, number): record for number, record in enumerate(dicts, 1)}


def load_own_dicts(name: str) -> list[dict[str, Any]]:
    """Call the function that a dataset is registered with.

    Raises:
        DataError: it returns no images, or fails as detectron2's loaders fail on files in another format.
    """
    source = MetadataCatalog.get(name).get("json_file", name)
    try:
        dicts = DatasetCatalog.get(name)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{source}: is not in COCO's format ({describe_error(error)})") from None
    if not dicts:
        raise DataError(f"{source}: has no images ({name})")
    return dicts


def _read_file(name: str) -> RawAnnotations | None:
    """Return what a dataset's file has; None if only its own function can read it."""
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file", "")
    read = metadata.get("annotation_reader")
    is_read_by_detectron2 = getattr(DatasetCatalog[name], "__module__", "").startswith(_DETECTRON2_LOADERS)
    if read is None and not (file and is_read_by_detectron2):
        return None
    if file and "://" not in file and not os.path.exists(file):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    return read() if read else RawAnnotations(read_annotations(file), metadata.get("image_root", ""), file)


def _stamp(name: str) -> list[Any]:
    """Return what changes with a dataset's registration and its file."""
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file", "")
    status = os.stat(file) if file and os.path.exists(file) else None
    version = (status.st_mtime_ns, status.st_size) if status else None
    return [metadata.get("annotation_reader"), DatasetCatalog[name], file, version]


def _set_classes(name: str, clean: CleanAnnotations) -> None:
    """Set the names and ids of the classes in detectron2's metadata, as its own reader does."""
    metadata = MetadataCatalog.get(name)
    index_of_id = {category_id: index for index, category_id in enumerate(clean.category_ids)}
    try:
        metadata.set(thing_classes=clean.classes, thing_dataset_id_to_contiguous_id=index_of_id)
    except AssertionError:  # detectron2 refuses to change metadata
        raise DataError(
            f"{clean.source}: its categories differ from the classes that {name} was registered with; register them "
            "in the order of their ids, or register the file under another name"
        ) from None


def _clean_dicts(name: str, dicts: Sequence[dict[str, Any]], **options: Any) -> CleanAnnotations:
    """Clean the annotations of dataset dicts; category ids are those of detectron2's metadata, if it has any."""
    metadata = MetadataCatalog.get(name)
    data = from_dataset_dicts(dicts, metadata.get("thing_classes", ()))
    clean = clean_annotations(data, "", name, **options)
    if clean.summary.left_out["categories"]:
        raise DataError(f"{name}: its thing_classes have equal names: rename them, or merge them")
    index_of_id = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    id_of_index = {index: category_id for category_id, index in index_of_id.items()}
    return replace(clean, category_ids=[id_of_index.get(index, index) for index in clean.category_ids])
