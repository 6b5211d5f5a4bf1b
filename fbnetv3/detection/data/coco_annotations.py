"""Read COCO-format annotation files, and check them and their images before training."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from PIL import Image

from fbnetv3.data.image_rendering import exif_orientation, oriented_size
from fbnetv3.errors import DataError
from fbnetv3.utils.checks import is_int, is_number
from fbnetv3.utils.text import evenly_spaced, first_few, one_line

logger = logging.getLogger(__name__)

MAX_IMAGES_OPENED = 2000
# Required keys of each list's entries, with their types; sizes and boxes are checked separately
_KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str, "width": object, "height": object},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": (int, str), "bbox": object},
    "categories": {"id": (int, str), "name": str},
}
# Problems by kind; {} is replaced by the number and the first few of the entries at fault
_PROBLEMS = {
    "repeated_id": "repeated ids {}; renumber them",
    "no_size": "images whose width or height is not a positive integer {}; correct the file",
    "missing": "missing images {}; name the folder that each file_name is relative to, or remove them from the file",
    "corrupt": "corrupt images {}; replace them, or remove them from the file",
    "wrong_size": "images whose size (width x height) differs from the file {}; correct the file, boxes included",
    "category": 'annotations of categories that are not in "categories" {}; add them, or remove the annotations',
    "bbox": 'annotations whose "bbox" is not a list of four finite numbers {}; it is [x, y, width, height] in pixels',
    "negative": "boxes of negative width or height {}; a box is [x, y, width, height], not two corners",
    "ignore": 'annotations with "ignore", which detectron2 does not support {}; remove them, or set iscrowd to 1',
    "run_length": "annotations with run-length masks instead of polygons {}; set INPUT.MASK_FORMAT bitmask",
    "no_mask": 'annotations without "segmentation" {}; add it, or set MODEL.MASK_ON False to train on boxes only',
}
# What detectron2 skips with its annotations, by kind
_SKIPPED = {
    "no_area": "boxes without area inside their image",
    "degenerate": "annotations whose polygons all have fewer than three points (kept if they had no segmentation)",
    "unlisted": "annotations of images that are not listed",
}
# Pixels by which rounding may make a box exceed its image; such a box does not count as clipped
_BORDER = 1.0
# Fraction of clipped boxes above which they are probably corners instead of [x, y, width, height]
_MANY_CLIPPED = 0.1
_MAX_COORDINATE = 1e9

_Entries = list[dict[str, Any]]
_PathLike = str | os.PathLike
_Problems = dict[str, list[object]]  # entries at fault, by kind


@dataclass
class AnnotationSummary:
    """Statistics of an annotation file."""

    classes: list[str]  # by category id, as in detectron2
    images: int
    images_opened: int  # to compare their sizes
    empty_images: int = 0  # without a box to train on
    boxes: int = 0  # to train on: not crowds, with an area, of a listed image
    masks: int = 0  # boxes that have a segmentation
    crowds: int = 0  # annotations that detectron2 skips in training
    clipped: int = 0  # boxes that exceed their image; detectron2 clips them
    skipped: int = 0  # annotations without area inside their image, or of no listed image


def check_annotations(
    json_file: _PathLike,
    image_root: _PathLike,
    *,
    mask_format: str | None = None,
    max_opened: int | None = MAX_IMAGES_OPENED,
    need_boxes: bool = True,
) -> AnnotationSummary:
    """Check a COCO-format annotation file and its images, and report all problems in one error.

    What detectron2 fixes on its own is summarized in one warning: it clips boxes that exceed their image, and skips
    boxes without area, annotations of unlisted images, and segmentations with too few points.

    Args:
        json_file: the annotations, in the format of COCO's `instances_*.json`.
        image_root: the folder that each image's `file_name` is relative to.
        mask_format: `INPUT.MASK_FORMAT`, "polygon" or "bitmask", if every box needs a mask, as for Mask R-CNN.
        max_opened: number of images, evenly spaced, to open in order to compare their sizes and find corrupt files;
            None opens all. (detectron2 reports a wrong size only when training reaches the image.)
        need_boxes: whether there must be a box to train on; False for images to evaluate on.

    Raises:
        DataError: the file or the images have problems; the message lists all of them.
    """
    data = read_annotations(json_file)
    images = data["images"]
    # Collect all problems, so that they can be fixed at once
    problems: _Problems = {kind: [] for kind in _PROBLEMS}
    _find_repeated_ids_and_missing_sizes(data, problems)
    _find_box_and_mask_problems(data, mask_format, problems)
    messages = []
    num_opened = 0
    if not os.path.isdir(image_root):
        messages.append(f"no image folder {image_root}: name the folder that each file_name is relative to")
    elif not problems["no_size"]:
        num_opened = _open_images(images, os.fspath(image_root), max_opened, problems)

    for kind, names in problems.items():
        if names:
            entries = f"({len(names)}): {first_few(names)}"
            messages.append(_PROBLEMS[kind].format(entries))
    if messages:
        if 0 < num_opened < len(images):
            messages.append(f"{num_opened} of {len(images)} images were opened")
        raise DataError(f"{json_file}: {'; '.join(messages)}")
    summary = _summarize(json_file, data, num_opened)
    if need_boxes and not summary.boxes:
        count = len(data["annotations"])
        raise DataError(f"{json_file}: none of its {count} annotations has a box to train on")
    return summary


def read_annotations(json_file: _PathLike, parts: Sequence[str] = tuple(_KEYS)) -> dict[str, _Entries]:
    """Read a COCO-format file, and require the lists in `parts`, with COCO's keys in their entries."""
    try:
        path = PathManager.get_local_path(os.fspath(json_file))
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        problem = _first_format_problem(data, parts)
    except json.JSONDecodeError as error:
        problem = (
            f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}; is the file complete?"
        )
    except UnicodeDecodeError as error:
        problem = f"is not JSON: byte {error.start} is not UTF-8; is the file compressed?"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    if problem:
        raise DataError(f"{json_file}: {problem}")
    return data


def _first_format_problem(data: Any, parts: Sequence[str]) -> str:
    """Return the first deviation from COCO's format, or ""."""
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
            for key, kind in _KEYS[part].items():
                if not isinstance(entry, dict) or key not in entry:
                    return f'{part}[{i}] has no "{key}"; it needs {", ".join(_KEYS[part])}'
                if not isinstance(entry[key], kind):
                    noun = "a string" if kind is str else "an integer or a string"
                    return f'{part}[{i}]: "{key}" {one_line(entry[key], 40)} must be {noun}'
        # Integers and strings could not be sorted together
        if len({isinstance(entry["id"], str) for entry in entries}) > 1:
            return f'"id" of {part} must be all integers or all strings'
    return ""


def _find_repeated_ids_and_missing_sizes(data: Mapping[str, _Entries], problems: _Problems) -> None:
    for part in _KEYS:
        counts = Counter(entry["id"] for entry in data[part])
        # pycocotools would keep only the last entry with each id
        problems["repeated_id"] += [f"{key} of {part}" for key, count in counts.items() if count > 1]
    for image in data["images"]:
        if not is_int(image["width"], 1) or not is_int(image["height"], 1):
            problems["no_size"].append(image["file_name"])


def _open_images(images: _Entries, root: str, max_opened: int | None, problems: _Problems) -> int:
    """Find missing and corrupt images and wrong sizes. Return the number of images opened."""
    # One system call per folder is much faster than one per image
    list_folder = cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else set())
    existing = []
    for image in images:
        folder, name = os.path.split(os.path.join(root, image["file_name"]))
        if name in list_folder(folder):
            existing.append(image)
        else:
            problems["missing"].append(os.path.join(folder, name))

    opened = evenly_spaced(existing, len(existing) if max_opened is None else max_opened)
    for image in opened:
        name = image["file_name"]
        try:
            with Image.open(os.path.join(root, name)) as file:
                size = oriented_size(file)
                note = " (rotated by its EXIF orientation)" if exif_orientation(file) >= 5 else ""
        except Exception as error:  # Pillow's decoders raise almost anything on corrupt bytes
            problems["corrupt"].append(f"{name} ({one_line(error, 80)})")
            continue
        stated_size = image["width"], image["height"]
        if size != stated_size:
            shown, stated = (f"{width} x {height}" for width, height in (size, stated_size))
            problems["wrong_size"].append(f"{name} is {shown}{note}, not {stated}")
    return len(opened)


def _find_box_and_mask_problems(
    data: Mapping[str, _Entries], mask_format: str | None, problems: _Problems
) -> None:
    """Find problems that detectron2 would not fix."""
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        annotation_id = annotation["id"]
        box = annotation["bbox"]
        category = annotation["category_id"]
        if category not in category_ids:
            problems["category"].append(f"{annotation_id} (category {category})")
        if not _is_box(box):
            problems["bbox"].append(annotation_id)
        elif box[2] < 0 or box[3] < 0:
            problems["negative"].append(annotation_id)
        if annotation.get("ignore"):
            problems["ignore"].append(annotation_id)
        # Crowds need no mask, because training skips them
        if mask_format and not annotation.get("iscrowd"):
            segmentation = annotation.get("segmentation")
            if not segmentation:
                problems["no_mask"].append(annotation_id)
            elif mask_format == "polygon" and isinstance(segmentation, dict):
                problems["run_length"].append(annotation_id)


def _is_box(box: object) -> bool:
    """Return whether a value is a list of four finite numbers; bools and NaN do not count."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(is_number(value, -_MAX_COORDINATE, _MAX_COORDINATE) for value in box)


def _summarize(json_file: _PathLike, data: Mapping[str, _Entries], num_opened: int) -> AnnotationSummary:
    """Count what detectron2 will use, and warn about what it will clip or skip."""
    images = {image["id"]: image for image in data["images"]}
    categories = sorted(data["categories"], key=lambda category: category["id"])
    summary = AnnotationSummary([category["name"] for category in categories], len(images), num_opened)
    skipped: Counter[str] = Counter()
    used_images = set()
    for annotation in data["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            skipped["unlisted"] += 1
            continue
        # Apply detectron2's rules
        x0, y0, width, height = annotation["bbox"]
        x1 = x0 + width
        y1 = y0 + height
        is_crowd = bool(annotation.get("iscrowd"))
        summary.crowds += is_crowd
        if min(x1, image["width"]) <= max(x0, 0) or min(y1, image["height"]) <= max(y0, 0):
            skipped["no_area"] += 1
        elif _has_only_degenerate_polygons(annotation):
            skipped["degenerate"] += 1
        elif not is_crowd:
            used_images.add(image["id"])
            summary.boxes += 1
            summary.masks += bool(annotation.get("segmentation"))
            exceeds = x1 > image["width"] + _BORDER or y1 > image["height"] + _BORDER
            summary.clipped += exceeds or min(x0, y0) < -_BORDER
    summary.empty_images = len(images) - len(used_images)
    summary.skipped = skipped.total()

    # Warn
    parts = []
    if summary.clipped:
        parts.append(f"clipped: {summary.clipped} boxes that exceed their image")
    parts += [f"skipped: {skipped[kind]} {noun}" for kind, noun in _SKIPPED.items() if skipped[kind]]
    if summary.clipped > _MANY_CLIPPED * summary.boxes:
        parts.append("boxes that exceed their image may be two corners instead of [x, y, width, height]")
    if parts:
        logger.warning("%s: %s", json_file, "; ".join(parts))
    return summary


def _has_only_degenerate_polygons(annotation: Mapping[str, Any]) -> bool:
    """Return whether no polygon has three points: detectron2 skips such an annotation with its box."""
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not polygons:
        return False
    return not any(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons
    )
