"""Write clean annotations as COCO's JSON, or as a YOLO dataset."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.detection.data.formats.yolo_labels import format_box_line
from fbnetv3.errors import DataError, OutputError
from fbnetv3.utils.files import as_output_error, make_folder, write_json, write_text


def write_coco(clean: CleanAnnotations, file: Path) -> None:
    """Write a split as a COCO-format file, whose image names are relative to `clean.image_root`.

    Raises:
        OutputError: the file is the one that the annotations come from, or cannot be written.
    """
    if file.exists() and file.resolve() == Path(clean.source).resolve():
        raise OutputError(f"{file}: is the file to convert: write to a different one")
    make_folder(file.parent)
    data: dict[str, Any] = {
        "images": clean.images,
        "annotations": clean.annotations,
        "categories": clean.categories,
    }
    write_json(file, data, indent=None)


def write_yolo(splits: Mapping[str, CleanAnnotations], folder: Path) -> Path:
    """Write a YOLO dataset of boxes, with links to the images, and return its `data.yaml`.

    Crowds, masks and keypoints are not written, because YOLO's box format has none.

    Raises:
        DataError: the splits have different classes, or two images would have the same label file.
        OutputError: the folder is not empty, or cannot be written.
    """
    # Links would replace images of the same name
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty: name a new folder")
    first = next(iter(splits.values()))
    for split, clean in splits.items():
        if clean.classes != first.classes:
            raise DataError(f"{clean.source}: the classes of {split} differ from those of {first.source}")
    values: dict[str, Any] = {"path": str(folder.absolute())}
    for split, clean in splits.items():
        name = "train" if split == "all" else split
        values[name] = f"images/{name}"
        _write_split(clean, folder / "images" / name, folder / "labels" / name)
    # Ultralytics requires both keys
    for name in ("train", "val"):
        values.setdefault(name, values.get("val") or values.get("test") or values["train"])
    values["names"] = dict(enumerate(first.classes))
    write_text(folder / "data.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return folder / "data.yaml"


def _write_split(clean: CleanAnnotations, image_folder: Path, label_folder: Path) -> None:
    lines = defaultdict(list)
    for annotation in clean.annotations:
        if not annotation["iscrowd"]:
            image = clean.images[annotation["image_id"] - 1]
            size = image["width"], image["height"]
            line = format_box_line(annotation["category_id"] - 1, annotation["bbox"], size)
            lines[annotation["image_id"]].append(f"{line}\n")
    written: dict[Path, str] = {}
    for image in clean.images:
        name = _name_in_split(image["file_name"])
        label = (label_folder / name).with_suffix(".txt")
        if label in written:
            raise DataError(
                f"{clean.source}: {written[label]} and {image['file_name']} would have the same label file: rename one"
            )
        written[label] = image["file_name"]
        _link(Path(clean.image_root, image["file_name"]).absolute(), image_folder / name)
        make_folder(label.parent)
        write_text(label, "".join(lines[image["id"]]))


def _name_in_split(file_name: str) -> Path:
    """Return the place of an image below the folder of its split."""
    name = Path(os.path.normpath(file_name))
    # An absolute name or one outside the image folder keeps its last part only
    if name.is_absolute() or ".." in name.parts:
        return Path(name.name)
    # Readers take the last folder "images" of a path for the one that has "labels" next to it
    return Path(*(part for part in name.parts[:-1] if part != "images"), name.name)


def _link(target: Path, link: Path) -> None:
    """Link to an image, or copy it where links are not possible."""
    make_folder(link.parent)
    with as_output_error(link):
        try:
            link.symlink_to(target)
        except OSError:
            shutil.copyfile(target, link)
