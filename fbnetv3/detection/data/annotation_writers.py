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
from fbnetv3.errors import DataError, OutputError
from fbnetv3.utils.files import as_output_error, make_folder, write_json, write_text

_DIGITS = 12  # of fractions: enough to give back pixels to a millionth


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
            lines[annotation["image_id"]].append(_yolo_line(annotation, image))
    written: dict[Path, str] = {}
    for image in clean.images:
        # An absolute name or one outside the image folder keeps its last part only
        name = os.path.normpath(image["file_name"])
        name = os.path.basename(name) if os.path.isabs(name) or name.startswith("..") else name
        label = (label_folder / name).with_suffix(".txt")
        if label in written:
            raise DataError(
                f"{clean.source}: {written[label]} and {image['file_name']} would have the same label file: rename one"
            )
        written[label] = image["file_name"]
        _link(Path(clean.image_root, image["file_name"]).absolute(), image_folder / name)
        make_folder(label.parent)
        write_text(label, "".join(lines[image["id"]]))


def _yolo_line(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    x, y, width, height = annotation["bbox"]
    size = image["width"], image["height"]
    values = (
        (x + width / 2) / size[0],
        (y + height / 2) / size[1],
        width / size[0],
        height / size[1],
    )
    return (
        " ".join([str(annotation["category_id"] - 1), *(f"{value:.{_DIGITS}g}" for value in values)]) + "\n"
    )


def _link(target: Path, link: Path) -> None:
    """Link to an image, or copy it where links are not possible."""
    make_folder(link.parent)
    with as_output_error(link):
        try:
            link.symlink_to(target)
        except OSError:
            shutil.copyfile(target, link)
