"""Read COCO-format annotation files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from fbnetv3.detection.data.annotations.annotation_ids import is_id, sort_by_id
from fbnetv3.errors import DataError
from fbnetv3.utils.text import one_line

# Keys without which an entry cannot be used; cleaning looks at those of annotations
_KEYS: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name"),
    "annotations": (),
    "categories": ("id", "name"),
}

CocoData = dict[str, list[dict[str, Any]]]  # "images", "annotations" and "categories" as in COCO's files


@dataclass(frozen=True)
class RawAnnotations:
    """Annotations as a file has them, in COCO's structure: boxes are not clipped, and keys may be missing."""

    data: CocoData
    image_root: str  # folder that each "file_name" is relative to
    source: str  # file or folder that they come from, for messages
    notes: tuple[str, ...] = ()  # one line each about what the reader decided

    @property
    def class_names(self) -> list[str]:
        """The names of the categories in the order of their ids."""
        return [category["name"] for category in sort_by_id(self.data["categories"])]


def read_annotations(json_file: str | os.PathLike, parts: Sequence[str] = tuple(_KEYS)) -> CocoData:
    """Read a COCO-format file as it is, and require the lists in `parts`.

    Raises:
        DataError: the file cannot be read, is not JSON, or does not have COCO's format.
    """
    try:
        path = PathManager.get_local_path(os.fspath(json_file))
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        problem = find_format_problem(data, parts)
    except json.JSONDecodeError as error:
        problem = (
            f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}; is the file complete?"
        )
    except UnicodeDecodeError as error:
        problem = f"is not JSON: byte {error.start} is not UTF-8; is the file compressed?"
    except RecursionError:
        problem = "is nested too deeply: is it in COCO's format?"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    if problem:
        raise DataError(f"{json_file}: {problem}")
    return data


def find_format_problem(data: Any, parts: Sequence[str] = tuple(_KEYS)) -> str:
    """Return the first deviation from COCO's format that makes the lists in `parts` unusable, or ""."""
    keys = ", ".join(_KEYS)
    if not isinstance(data, dict):
        kind = "is a list, as in a results file" if isinstance(data, list) else "is not a mapping"
        return f"{kind}: annotations are a mapping with the keys {keys}"
    for part in parts:
        entries = data.get(part)
        if not isinstance(entries, list):
            return f'has no list "{part}": COCO\'s format has {keys}'
        if part != "annotations" and not entries:
            return f'the list "{part}" is empty'
        for i, entry in enumerate(entries):
            if problem := _entry_problem(entry, part):
                return f"{part}[{i}]{problem}"
    return ""


def _entry_problem(entry: Any, part: str) -> str:
    """Return what an entry lacks to be used, or ""."""
    if not isinstance(entry, dict):
        return f" {one_line(entry, 40)} must be a mapping"
    keys = _KEYS[part]
    for key in keys:
        value = entry.get(key)
        if value is None:
            return f' has no "{key}"; it needs {", ".join(keys)}'
        if key == "id" and not is_id(value):
            return f': "id" {one_line(value, 40)} must be a number or a string'
        if key != "id" and not isinstance(value, str):
            return f': "{key}" {one_line(value, 40)} must be a string'
    return ""
