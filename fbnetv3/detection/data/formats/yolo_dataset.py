"""The description of a YOLO dataset: `data.yaml` as Ultralytics writes it, or a list of class names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fbnetv3.data.image_folders import find_image_files, is_image_file
from fbnetv3.detection.data.formats.annotation_source import SPLIT_NAMES, find_in_file, read_lines
from fbnetv3.errors import DataError, FieldError
from fbnetv3.utils.checks import is_int
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.text import first_few
from fbnetv3.utils.yaml_files import read_mapping

_YAML_SUFFIXES = (".yaml", ".yml")
_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_LISTS = ("classes.txt", "obj.names", "classes.names")
_LABEL_SUFFIXES = (".txt",)
_MAX_CLASSES = 100_000
_PARENTS = 3  # folders above a split in which its description may be


@dataclass(frozen=True)
class YOLODataset:
    """A dataset's classes, and the folders and list files of its splits."""

    file: Path  # the description
    root: Path  # folder that paths are relative to
    names: dict[int, str]  # by class id, in ascending order
    splits: dict[str, list[Path]] = field(default_factory=dict)  # by "train", "val" and "test"
    keypoints: tuple[int, int] | None = None  # their number, and that of values for each (2 or 3)
    keypoint_names: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[str, str], ...] | None = (
        None  # names that a flip exchanges; None if it does not say
    )
    note: str = ""  # a line about what had to be decided


def find_yolo_description(path: Path) -> Path | None:
    """Return the file that describes a dataset: `path` itself, one in that folder, or one above a split's folder."""
    if path.is_file() and (path.suffix.lower() in _YAML_SUFFIXES or path.name in _NAME_LISTS):
        return path
    folder = path if path.is_dir() else path.parent
    descriptions = (description_in(candidate) for candidate in (folder, *folder.parents[:_PARENTS]))
    return next((file for file in descriptions if file), None)


def description_in(folder: Path) -> Path | None:
    """Return the file in a folder that describes a dataset, if there is one."""
    yaml_files = sorted(file for file in folder.glob("*.y*ml") if file.suffix.lower() in _YAML_SUFFIXES)
    # A file of any name counts if it is the only one and has the key
    others = yaml_files if len(yaml_files) == 1 and find_in_file(yaml_files[0], b"names:") else []
    candidates = [*(folder / name for name in (*_DESCRIPTIONS, *_NAME_LISTS)), *others]
    return next((file for file in candidates if file.is_file()), None)


def read_yolo_dataset(file: Path) -> YOLODataset:
    """Read a description: `data.yaml`, or a text file with one class name per line.

    Raises:
        FieldError: a key is missing or wrong, or a split does not exist; the message names file and key.
    """
    if file.suffix.lower() not in _YAML_SUFFIXES:
        names = dict(enumerate(read_lines(file)))
        if not names:
            raise DataError(f"{file}: names no classes")
        _require_different(names, file)
        return YOLODataset(file, file.parent, names, _splits_in_folder(file.parent))
    values = read_mapping(file, FieldError, ("train", "val", "names"))
    names = _read_names(values, file)
    roots = _possible_roots(values, file)
    splits = {split: paths for split in SPLIT_NAMES if (paths := _read_split(values, split, roots, file))}
    keypoints = _read_keypoint_shape(values, file)
    keypoint_names = _read_keypoint_names(values, keypoints[0]) if keypoints else ()
    pairs = _read_flip_pairs(values, keypoint_names, file) if keypoints else None
    note = ""
    if len(roots) == 1 and values.get("path"):
        # A dataset that was moved still has the path of the computer that it comes from
        note = f"{file.name}: path {values['path']} does not exist; using the folder of the file"
    return YOLODataset(file, roots[0], names, splits, keypoints, keypoint_names, pairs, note)


def _read_names(values: dict[str, Any], file: Path) -> dict[int, str]:
    names = values.get("names")
    count = values.get("nc")
    if names is None and isinstance(count, int) and is_int(count, 1, _MAX_CLASSES):
        names = [f"class {i}" for i in range(count)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(is_int(key, 0) for key in names):
        raise FieldError(
            "must be a list of class names, or a mapping from ids to names", "names", str(file)
        )
    if count is not None and count != len(names):
        raise FieldError(f"{count} differs from the {len(names)} names", "nc", str(file))
    by_id = {key: str(names[key]) for key in sorted(names)}
    return _require_different(by_id, file)


def _require_different(names: dict[int, str], file: Path) -> dict[int, str]:
    if repeated := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise FieldError(f"{first_few(repeated)} is there more than once: rename it", "names", str(file))
    return names


def _possible_roots(values: dict[str, Any], file: Path) -> list[Path]:
    """Return the folders that paths may be relative to: `path`, next to the file or in the current folder."""
    folder = file.parent
    path = values.get("path")
    if path is None or path == "":
        return [folder]
    if not isinstance(path, str):
        raise FieldError(f"{path!r} must be a folder", "path", str(file))
    stated = expand_path(path)
    roots = [root for root in (folder / stated, stated) if os.path.isdir(root)]
    return [*roots, folder]


def _read_split(values: dict[str, Any], split: str, roots: Sequence[Path], file: Path) -> list[Path]:
    """Return the existing folders and list files of a split."""
    stated = next((values[name] for name in SPLIT_NAMES[split] if values.get(name)), None)
    if stated is None:
        return []
    entries = stated if isinstance(stated, list) else [stated]
    if not all(isinstance(entry, str) for entry in entries):
        raise FieldError(f"{stated!r} must be a path or a list of paths", split, str(file))
    paths = []
    for entry in entries:
        # Roboflow's files name "../train/images", as seen from a folder that does not exist
        relative = [entry, entry.removeprefix("../")]
        candidates = [root / expand_path(name) for name in relative for root in roots]
        path = next((candidate for candidate in candidates if os.path.exists(candidate)), None)
        if path is not None:
            paths.append(path)
        elif split != "test":  # which many files name without having it
            raise FieldError(f"{candidates[0]} does not exist", split, str(file))
    return paths


def _read_keypoint_shape(values: dict[str, Any], file: Path) -> tuple[int, int] | None:
    shape = values.get("kpt_shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and is_int(shape[0], 1) and shape[1] in (2, 3)):
        raise FieldError(
            f"{shape!r} must be [number of keypoints, 2 or 3 values each]", "kpt_shape", str(file)
        )
    return shape[0], shape[1]


def _read_keypoint_names(values: dict[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of keypoints, which newer files list for each class."""
    names = values.get("kpt_names")
    if isinstance(names, dict) and names:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == count:
        return tuple(map(str, names))
    return tuple(f"keypoint {number}" for number in range(1, count + 1))


def _read_flip_pairs(
    values: dict[str, Any], names: Sequence[str], file: Path
) -> tuple[tuple[str, str], ...] | None:
    """Return what a flip exchanges according to `flip_idx`, which has the index of each keypoint's mirror image."""
    indices = values.get("flip_idx")
    if not indices:
        return None
    numbers = list(range(len(names)))
    is_valid = isinstance(indices, list) and all(map(is_int, indices)) and sorted(indices) == numbers
    if not is_valid or any(indices[indices[i]] != i for i in numbers):
        raise FieldError(
            f"{indices!r} must have the index of each of the {len(names)} keypoints' mirror image, or its own",
            "flip_idx",
            str(file),
        )
    return tuple((names[i], names[indices[i]]) for i in numbers if i < indices[i])


def _splits_in_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the splits of a folder without `data.yaml`: `images/train`, `train/images` or `train`."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            candidates = (folder / "images" / name, folder / name / "images", folder / name)
            if paths := [path for path in candidates if path.is_dir()]:
                splits[split] = paths[:1]
                break
    return splits


def list_yolo_images(paths: Sequence[Path], roots: Sequence[Path]) -> Iterator[Path]:
    """Yield the images of folders, of files that list images, and images named themselves.

    Paths in a list are relative to the list's folder, to one of `roots`, or to the current folder.
    """
    for path in paths:
        if path.is_dir():
            yield from find_image_files(path, _LABEL_SUFFIXES)
        elif is_image_file(path):
            yield path
        else:
            for name in read_lines(path):
                candidates = [folder / name for folder in (path.parent, *roots, Path())]
                # os.path.isfile is False for text that cannot be a file name; Path.is_file would raise
                yield next((image for image in candidates if os.path.isfile(image)), candidates[0])


def label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder "images" becomes "labels", and the suffix ".txt".

    A file next to the image is its label file if that one does not exist.
    """
    sibling = image.with_suffix(".txt")
    folders = image.parts[:-1]
    if "images" not in folders:
        return sibling
    last = len(folders) - 1 - folders[::-1].index("images")
    label = Path(*folders[:last], "labels", *folders[last + 1 :], sibling.name)
    return sibling if not label.is_file() and sibling.is_file() else label
