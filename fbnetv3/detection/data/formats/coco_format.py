"""Annotations in COCO's format: a JSON file with images, annotations and categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.detection.data.annotations.clean_annotations import read_category_entries
from fbnetv3.detection.data.annotations.coco_files import RawAnnotations, read_annotations
from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    AnnotationSource,
    find_in_file,
    matching_formats,
)
from fbnetv3.detection.data.formats.file_reader import FileReader
from fbnetv3.detection.data.formats.image_lookup import guess_image_root


class COCOReader(FileReader):
    """Reads COCO's `instances_*.json`, alone or in a folder with splits.

    A folder has a file per split: `train/_annotations.coco.json`, `train.json`, `annotations/train.json` or
    `annotations/instances_train*.json`; or it is one split with one JSON file.
    """

    title = "COCO JSON"
    suffixes = (".json",)
    split_patterns = (
        "{}/_annotations.coco.json",
        "{}.json",
        "annotations/{}.json",
        "annotations/instances_{}*.json",
        "annotations/lvis_*_{}.json",
    )
    has_urls = False
    """Whether the files have LVIS's keys."""

    def is_content_known(self, file: Path) -> bool:
        """Return whether a JSON file has the keys of COCO, or of LVIS."""
        return is_lvis_file(file) == self.has_urls

    def find_single_files(self, folder: Path) -> list[Path]:
        """Return the annotations of a folder that is one split: as Roboflow names them, or the only JSON file."""
        file = folder / "_annotations.coco.json"
        files = [file] if file.is_file() else sorted(folder.glob("*.json"))
        return [file for file in files if find_in_file(file, b'"annotations"')] if len(files) == 1 else []

    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read a file; cleaning checks its entries."""
        file = self.find_file(source)
        data = read_annotations(file, parts=())
        images = data.get("images")
        for image in images if isinstance(images, list) else ():
            self.complete_image(image)
        root = source.images or _find_image_root(file, images)
        return RawAnnotations(data, str(root), str(file))

    def complete_image(self, image: Any) -> None:
        """Add what an entry of "images" lacks."""

    def categories(self, source: AnnotationSource) -> list[dict[str, Any]]:
        """Return the categories in the order of their ids."""
        return read_category_entries(self.find_file(source))


def is_lvis_file(file: Path) -> bool:
    """Return whether a JSON file has LVIS's keys; it is searched as bytes, because parsing takes long."""
    has_urls = find_in_file(file, b'"coco_url"') and not find_in_file(file, b'"file_name"')
    return has_urls or find_in_file(file, b'"neg_category_ids"')


def has_boxes(path: Path) -> bool:
    """Return whether an existing file or folder has annotations of boxes in any format.

    A JSON file must have COCO's keys, because others list images of classes.
    """
    if path.is_file() and path.suffix.lower() == ".json":
        return find_in_file(path, b'"annotations"') and find_in_file(path, b'"categories"')
    return bool(matching_formats(path))


def _find_image_root(file: Path, images: Any) -> Path:
    """Return the folder that has the first image: next to the file, or as COCO lays them out."""
    split = file.stem.removeprefix("instances_")  # such as train2017
    parents = (file.parent, file.parent.parent)
    folders = [parents[0]]
    folders += [folder for parent in parents for folder in (parent / split, parent / "images" / split)]
    folders += [parents[0] / "images", parents[1] / "images", parents[1]]
    first = images[0] if isinstance(images, list) and images else None
    name = first.get("file_name") if isinstance(first, dict) else None
    return guess_image_root(folders, [name] if isinstance(name, str) else [])


ANNOTATION_FORMATS.register(COCOReader(), name="coco")
