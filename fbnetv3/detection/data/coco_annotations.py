"""COCO-format annotation files: reading them, and checking them and their images before training."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from fbnetv3.data.image_io import exif_orientation, oriented_size
from fbnetv3.errors import DataError
from fbnetv3.utils.checks import is_int, is_number
from fbnetv3.utils.text import evenly_spaced, first_few, one_line

logger = logging.getLogger(__name__)

MAX_IMAGES_OPENED = 2000
# Required keys of each list's entries, with their types; sizes and boxes are checked separately
_KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str, "width": object, "height": object},
    "annotations": {
        "id": (int, str),
        "image_id": (int, str),
        "category_id": (int, str),
        "bbox": object,
    },
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
    "ignore": 'annotations with "ignore", which detectron2 does not know {}; remove them, or set iscrowd to 1',
    "run_length": "annotations with run-length masks instead of polygons {}; set INPUT.MASK_FORMAT bitmask",
    "no_mask": 'annotations without "segmentation" {}; add it, or set MODEL.MASK_ON False to train on boxes only',
}
# Pixels by which rounding may make a box exceed its image; such a box does not count as clipped
_BORDER = 1.0
# Fraction of clipped boxes above which they are probably corners instead of [x, y, width, height]
_MANY_CLIPPED = 0.1
_MAX_COORDINATE = 1e9

_Entries = list[dict[str, Any]]
_PathLike = str | os.PathLike
_Problems = defaultdict[str, list[object]]  # names of the entries at fault, by kind of problem


class AnnotationError(DataError):
    """An annotation file that is corrupt, incomplete, or does not fit its images or the network."""


@dataclass(frozen=True)
class AnnotationSummary:
    """Statistics of an annotation file."""

    images: int
    boxes: int  # annotations to train on: not crowds, with an area, and of a listed image
    crowds: int  # annotations that detectron2 skips in training
    empty_images: int  # without a box to train on
    clipped: int  # boxes that exceed their image; detectron2 clips them
    dropped: int  # annotations that detectron2 skips: without area inside their image, or of no listed image
    masks: int  # boxes that have a segmentation
    classes: tuple[str, ...]  # names of the categories in the order of their ids, as for a network's outputs
    images_opened: int  # image files that were opened to compare their sizes


def check_annotations(
    json_file: _PathLike,
    image_root: _PathLike,
    num_classes: int | None = None,
    *,
    mask_format: str | None = None,
    max_opened: int | None = MAX_IMAGES_OPENED,
    need_boxes: bool = True,
) -> AnnotationSummary:
    """Check a COCO-format annotation file and its images, and report all problems at once.

    What detectron2 fixes on its own is summarized in one warning: it clips boxes that exceed their image, and skips
    boxes without area, annotations of unlisted images, and segmentations with too few points.

    Args:
        json_file: the annotations, in the format of COCO's `instances_*.json`.
        image_root: the folder that each image's `file_name` is relative to.
        num_classes: number of classes of the network, without background; None skips this check.
        mask_format: `INPUT.MASK_FORMAT`, "polygon" or "bitmask", if every box needs a mask, as for Mask R-CNN.
        max_opened: number of images, evenly spaced, to open in order to compare their sizes and find corrupt files;
            None opens all. (detectron2 reports a wrong size only when training reaches the image.)
        need_boxes: whether there must be a box to train on; False for images to evaluate on.

    Raises:
        AnnotationError: the file is missing, not JSON, or lacks keys; images are missing, corrupt, or differ in size
            from the file; annotations have an unknown category or an invalid box or mask; ids are repeated; the number
            of classes is not the network's; there is no box to train on.
    """
    data = read_annotations(json_file)
    problems: _Problems = defaultdict(list)
    messages = _compare_num_classes(data["categories"], num_classes)

    # Collect all problems, so that they can be fixed at once
    _find_repeated_ids(data, problems)
    num_opened = 0
    if not os.path.isdir(image_root):
        messages.append(f"no image folder {image_root}: name the folder that each file_name is relative to")
    elif not _find_images_without_size(data["images"], problems):
        num_opened = _open_images(data["images"], os.fspath(image_root), max_opened, problems)
    _find_box_and_mask_problems(data, mask_format, problems)

    messages += _describe_problems(problems)
    if messages:
        num_images = len(data["images"])
        if 0 < num_opened < num_images:
            messages.append(f"{num_opened} of {num_images} images were opened")
        raise AnnotationError(f"{json_file}: {'; '.join(messages)}")

    summary = _summarize(json_file, data, num_opened)
    if need_boxes and not summary.boxes:
        num_annotations = len(data["annotations"])
        raise AnnotationError(f"{json_file}: none of its {num_annotations} annotations has a box to train on")
    return summary


def _describe_problems(problems: _Problems) -> list[str]:
    messages = []
    for kind, names in problems.items():
        entries = f"({len(names)}): {first_few(names)}"
        messages.append(_PROBLEMS[kind].format(entries))
    return messages


def read_annotations(
    json_file: _PathLike, parts: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, _Entries]:
    """Read a COCO-format file.

    Args:
        json_file: the file.
        parts: the lists that it must have; their entries must have COCO's keys.
    """
    try:
        path = PathManager.get_local_path(os.fspath(json_file))
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        problem = _find_format_problem(data, parts)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        problem = f"is not JSON: {position}: {error.msg}; is the file complete?"
    except UnicodeDecodeError as error:
        problem = f"is not JSON: byte {error.start} is not UTF-8; is the file compressed?"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    if problem:
        raise AnnotationError(f"{json_file}: {problem}")
    return data


def _find_format_problem(data: Any, parts: Sequence[str]) -> str:
    """Return the first deviation from COCO's format, or "" if there is none."""
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
            if problem := _find_entry_problem(entry, _KEYS[part]):
                return f"{part}[{i}]{problem}"
        # Integers and text could not be sorted
        if len({isinstance(entry["id"], str) for entry in entries}) > 1:
            return f'"id" of {part} must be all integers, or all text'
    return ""


def _find_entry_problem(entry: Any, types: Mapping[str, Any]) -> str:
    """Return which key of an entry is missing or has a value of the wrong type, or "" if all are right."""
    for key, kind in types.items():
        if not isinstance(entry, dict) or key not in entry:
            return f' has no "{key}"; it needs {", ".join(types)}'
        if not isinstance(entry[key], kind):
            noun = "text" if kind is str else "an integer or text"
            return f': "{key}" {one_line(entry[key], 40)} must be {noun}'
    return ""


def _compare_num_classes(categories: _Entries, num_classes: int | None) -> list[str]:
    """Return an error message if the network has a different number of classes."""
    count = len(categories)
    if num_classes is None or num_classes == count:
        return []
    names = first_few([category["name"] for category in categories])
    return [
        f"has {count} categories ({names}), but the network has {num_classes} classes: set "
        f"MODEL.ROI_HEADS.NUM_CLASSES {count} (for RetinaNet MODEL.RETINANET.NUM_CLASSES {count})"
    ]


def _find_repeated_ids(data: Mapping[str, _Entries], problems: _Problems) -> None:
    """Find repeated ids, of which COCO's tools would use only one."""
    for part in _KEYS:
        counts = Counter(entry["id"] for entry in data[part])
        for id, count in counts.items():
            if count > 1:
                problems["repeated_id"].append(f"{id} of {part}")


def _find_images_without_size(images: _Entries, problems: _Problems) -> bool:
    for image in images:
        if not (is_int(image["width"], 1) and is_int(image["height"], 1)):
            problems["no_size"].append(image["file_name"])
    return "no_size" in problems


def _open_images(images: _Entries, root: str, max_opened: int | None, problems: _Problems) -> int:
    """Find missing and corrupt images and wrong sizes. Return the number of images opened."""
    list_folder = cache(_list_folder)  # one system call per folder is much faster than one per image
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
                width, height = oriented_size(file)
                is_rotated = exif_orientation(file) >= 5
        except Exception as error:  # Pillow's decoders raise almost anything on corrupt bytes
            problems["corrupt"].append(f"{name} ({one_line(error, 80)})")
            continue
        stated_width, stated_height = image["width"], image["height"]
        if (width, height) != (stated_width, stated_height):
            note = " (rotated by its EXIF orientation)" if is_rotated else ""
            message = f"{name} is {width} x {height}{note}, not {stated_width} x {stated_height}"
            problems["wrong_size"].append(message)
    return len(opened)


def _list_folder(folder: str) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()


def _find_box_and_mask_problems(data: Mapping[str, _Entries], mask_format: str | None, problems: _Problems) -> None:
    """Find what detectron2 would not fix."""
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        id = annotation["id"]
        box = annotation["bbox"]
        category = annotation["category_id"]
        if category not in category_ids:
            problems["category"].append(f"{id} (category {category})")
        if not _is_box(box):
            problems["bbox"].append(id)
        elif box[2] < 0 or box[3] < 0:
            problems["negative"].append(id)
        if annotation.get("ignore", 0):
            problems["ignore"].append(id)
        # Crowds need no mask, because training skips them
        if mask_format and not _is_crowd(annotation):
            segmentation = annotation.get("segmentation")
            if not segmentation:
                problems["no_mask"].append(id)
            elif mask_format == "polygon" and isinstance(segmentation, dict):
                problems["run_length"].append(id)


def _summarize(json_file: _PathLike, data: Mapping[str, _Entries], num_opened: int) -> AnnotationSummary:
    """Count what detectron2 will use, and warn of what it will clip and skip."""
    # Boxes (N, 4) and image sizes (N, 2) of the annotations whose images are listed
    images = {image["id"]: image for image in data["images"]}
    annotations = [a for a in data["annotations"] if a["image_id"] in images]
    image_sizes = {id: (image["width"], image["height"]) for id, image in images.items()}
    boxes = _to_array([a["bbox"] for a in annotations], 4)
    sizes = _to_array([image_sizes[a["image_id"]] for a in annotations], 2)

    # Apply detectron2's rules
    top_left = boxes[:, :2]
    bottom_right = top_left + boxes[:, 2:]
    visible = np.minimum(bottom_right, sizes) - top_left.clip(min=0)
    has_area = (visible > 0).all(axis=1)
    is_outside = (top_left < -_BORDER) | (bottom_right > sizes + _BORDER)
    exceeds_image = is_outside.any(axis=1)
    is_crowd = np.array([_is_crowd(a) for a in annotations], dtype=bool)
    is_degenerate = np.array([_has_only_degenerate_polygons(a) for a in annotations], dtype=bool)
    is_used = has_area & ~is_crowd & ~is_degenerate
    used = [annotations[i] for i in np.flatnonzero(is_used)]

    without_polygon = "annotations whose polygons all have fewer than three points"
    skipped = {
        "boxes without area inside their image": int((~has_area).sum()),
        f"{without_polygon} (kept if they had no segmentation)": int((is_degenerate & has_area).sum()),
        "annotations of images that are not listed": len(data["annotations"]) - len(annotations),
    }
    categories = sorted(data["categories"], key=lambda category: category["id"])
    used_images = {a["image_id"] for a in used}
    summary = AnnotationSummary(
        images=len(images),
        boxes=len(used),
        crowds=int(is_crowd.sum()),
        empty_images=len(images.keys() - used_images),
        clipped=int((exceeds_image & is_used).sum()),
        dropped=sum(skipped.values()),
        masks=sum(bool(a.get("segmentation")) for a in used),
        classes=tuple(category["name"] for category in categories),
        images_opened=num_opened,
    )
    _warn_of_fixes(json_file, summary, skipped)
    return summary


def _to_array(rows: Sequence[Sequence[float]], columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def _warn_of_fixes(json_file: _PathLike, summary: AnnotationSummary, skipped: Mapping[str, int]) -> None:
    """Log what detectron2 will clip and skip; `skipped` has the number of annotations of each kind."""
    parts = []
    if summary.clipped:
        parts.append(f"clipped: {summary.clipped} boxes that exceed their image")
    for noun, count in skipped.items():
        if count:
            parts.append(f"skipped: {count} {noun}")
    if summary.clipped > _MANY_CLIPPED * summary.boxes:
        parts.append("boxes that exceed their image may be two corners instead of [x, y, width, height]")
    if parts:
        logger.warning("%s: %s", json_file, "; ".join(parts))


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _has_only_degenerate_polygons(annotation: Mapping[str, Any]) -> bool:
    """Return whether no polygon has three points: detectron2 skips such an annotation with its box."""
    polygons = annotation.get("segmentation")
    return isinstance(polygons, list) and bool(polygons) and not any(map(_is_polygon, polygons))


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _is_box(box: object) -> bool:
    """Return whether a value is a list of four finite numbers; bools and NaN do not count."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(is_number(value, -_MAX_COORDINATE, _MAX_COORDINATE) for value in box)
