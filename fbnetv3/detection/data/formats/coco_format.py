"""Annotations in COCO's format: a JSON file with images, annotations and categories."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    SPLIT_NAMES,
    AnnotationReader,
    AnnotationSource,
    RawAnnotations,
    matching_formats,
)
from fbnetv3.detection.data.formats.image_lookup import guess_image_root
from fbnetv3.errors import DataError

PARTS = ("images", "annotations", "categories")


class COCOReader(AnnotationReader):
    """Reads COCO's `instances_*.json`, alone or in a folder with splits.

    A folder has a file per split: `train/_annotations.coco.json`, `train.json`, `annotations/train.json` or
    `annotations/instances_train*.json`.
    """

    title = "COCO JSON"
    has_urls = False
    """Whether the files have LVIS's keys."""

    def recognizes(self, path: Path) -> bool:
        """Return whether this is a JSON file of the format, or a folder with such files."""
        files = list(_split_files(path).values()) if path.is_dir() else [path]
        return any(file.suffix.lower() == ".json" and is_lvis_file(file) == self.has_urls for file in files)

    def find_splits(self, path: Path) -> list[str]:
        """Return the splits of a folder."""
        return list(_split_files(path)) if path.is_dir() else []

    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read a file; only its structure is checked."""
        file = self._file(source)
        data = read_coco_mapping(file)
        for image in data["images"]:
            self.complete_image(image)
        root = source.images or _find_image_root(file, data)
        return RawAnnotations(data, str(root), str(file))

    def complete_image(self, image: Any) -> None:
        """Add what an entry of "images" lacks."""

    def class_names(self, source: AnnotationSource) -> list[str]:
        """Return the names of the categories in the order of their ids."""
        data = {"categories": read_coco_mapping(self._file(source), ("categories",))["categories"]}
        try:
            return RawAnnotations(data, "", "").class_names
        except (KeyError, TypeError):
            raise DataError(f"{self._file(source)}: a category has no id or no name") from None

    def _file(self, source: AnnotationSource) -> Path:
        path = source.annotations
        return _split_files(path)[source.split] if path.is_dir() else path


def read_coco_mapping(file: Path, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Read a JSON file, and require that it is a mapping with some lists."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
        problem = _structure_problem(data, parts)
    except json.JSONDecodeError as error:
        problem = (
            f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}; is the file complete?"
        )
    except UnicodeDecodeError as error:
        problem = f"is not JSON: byte {error.start} is not UTF-8; is the file compressed?"
    except RecursionError:
        problem = "is not in COCO's format: it is nested too deeply"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    if problem:
        raise DataError(f"{file}: {problem}")
    return data


def _structure_problem(data: Any, parts: Sequence[str]) -> str:
    keys = ", ".join(PARTS)
    if not isinstance(data, dict):
        kind = "is a list, as in a results file" if isinstance(data, list) else "is not a mapping"
        return f"{kind}: annotations are a mapping with the keys {keys}"
    for part in parts:
        if not isinstance(data.get(part), list):
            return f'has no list "{part}": COCO\'s format has {keys}'
    return ""


def is_lvis_file(file: Path) -> bool:
    """Return whether a JSON file has LVIS's keys; it is searched as bytes, because parsing takes long."""
    has_urls = find_in_file(file, b'"coco_url"') and not find_in_file(file, b'"file_name"')
    return has_urls or find_in_file(file, b'"neg_category_ids"')


def find_in_file(file: Path, text: bytes) -> bool:
    """Return whether a file contains a text; False if it cannot be read."""
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def has_boxes(path: Path) -> bool:
    """Return whether an existing file or folder has annotations of boxes in any format.

    A JSON file must have COCO's keys, because others list images of classes.
    """
    if path.is_file() and path.suffix.lower() == ".json":
        return find_in_file(path, b'"annotations"') and find_in_file(path, b'"categories"')
    return bool(matching_formats(path))


def _split_files(folder: Path) -> dict[str, Path]:
    files = {}
    for split, names in SPLIT_NAMES.items():
        patterns = [
            pattern.format(name)
            for name in names
            for pattern in (
                "{}/_annotations.coco.json",
                "{}.json",
                "annotations/{}.json",
                "annotations/instances_{}*.json",
                "annotations/lvis_*_{}.json",
            )
        ]
        if matches := [file for pattern in patterns for file in sorted(folder.glob(pattern))]:
            files[split] = matches[0]
    return files


def _find_image_root(file: Path, data: dict[str, Any]) -> Path:
    """Return the folder that has the first image: next to the file, or as COCO lays them out."""
    split = file.stem.removeprefix("instances_")  # such as train2017
    parents = (file.parent, file.parent.parent)
    folders = [parents[0]]
    folders += [folder for parent in parents for folder in (parent / split, parent / "images" / split)]
    folders += [parents[0] / "images", parents[1] / "images", parents[1]]
    names = [
        image["file_name"]
        for image in data["images"][:1]
        if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    return guess_image_root(folders, names)


ANNOTATION_FORMATS.register(COCOReader(), name="coco")
