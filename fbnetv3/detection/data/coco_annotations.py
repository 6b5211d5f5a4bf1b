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
# Required keys of each list's entries, with their types; sizes and boxes are checked separately.
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
# Problems by kind; {} is replaced by the number and the first few of the entries at fault.
_PROBLEMS = {
    "repeated_id": "repeated ids {}; renumber them",
    "no_size": "images whose width or height is not a positive integer {}; correct the file",
    "missing": "missing images {}; name the folder that each file_name is relative to, or remove them from the file",
    "corrupt": "corrupt images {}; replace them, or remove them from the file",
    "wrong_size": "images of another size (width x height) than the file says {}; correct the file, boxes included",
    "category": 'annotations of categories that are not in "categories" {}; add them, or remove the annotations',
    "bbox": 'annotations whose "bbox" is not a list of four finite numbers {}; it is [x, y, width, height] in pixels',
    "negative": "boxes of negative width or height {}; a box is [x, y, width, height], not two corners",
    "ignore": 'annotations with "ignore", which detectron2 does not know {}; remove them, or set iscrowd to 1',
    "run_length": "annotations with run-length masks instead of polygons {}; set INPUT.MASK_FORMAT bitmask",
    "no_mask": 'annotations without "segmentation" {}; add it, or set MODEL.MASK_ON False to train on boxes only',
}
_BORDER = 1.0  # pixels by which a box may exceed its image without counting as clipped, because of rounding
_MANY_CLIPPED = 0.1  # share of clipped boxes above which they are probably corners instead of [x, y, width, height]

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

    What detectron2 corrects by itself is one warning with counts: it clips boxes that exceed their image, and skips
    boxes without area, annotations of unlisted images and segmentations with too few points.

    Args:
        json_file: the annotations, in the format of COCO's `instances_*.json`.
        image_root: the folder that each image's `file_name` is relative to.
        num_classes: number of classes of the network, without background; None skips this check.
        mask_format: `INPUT.MASK_FORMAT`, "polygon" or "bitmask", if every box needs a mask, as for Mask R-CNN.
        max_opened: number of images, evenly spaced, to open in order to compare their sizes and find corrupt files;
            None opens all. (detectron2 reports an image of another size only when training reaches it.)
        need_boxes: whether there must be a box to train on; False for images to evaluate on.

    Raises:
        AnnotationError: the file is missing, not JSON, or lacks keys; images are missing, corrupt or of another size
            than stated; annotations have an unknown category or an invalid box or mask; ids are repeated; the number
            of classes is not the network's; there is no box to train on.
    """
    data = read_annotations(json_file)
    images, annotations, categories = data["images"], data["annotations"], data["categories"]
    messages = _check_num_classes(categories, num_classes)
    problems: _Problems = defaultdict(list)
    _find_repeated_ids(data, problems)
    images_opened = 0
    if not os.path.isdir(image_root):
        messages.append(f"no image folder {image_root}: name the folder that each file_name is relative to")
    elif not _find_images_without_size(images, problems):
        images_opened = _open_images(images, os.fspath(image_root), max_opened, problems)
    category_ids = {category["id"] for category in categories}
    _find_box_and_mask_problems(annotations, category_ids, mask_format, problems)

    for kind, names in problems.items():
        messages.append(_PROBLEMS[kind].format(f"({len(names)}): {first_few(names)}"))
    if messages:
        if 0 < images_opened < len(images):
            messages.append(f"{images_opened} of {len(images)} images were opened")
        raise AnnotationError(f"{json_file}: {'; '.join(messages)}")

    summary = _summarize(json_file, data, images_opened)
    if need_boxes and not summary.boxes:
        raise AnnotationError(f"{json_file}: none of its {len(annotations)} annotations has a box to train on")
    return summary


def read_annotations(
    json_file: _PathLike, parts: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, _Entries]:
    """Read a COCO-format file.

    Args:
        json_file: the file.
        parts: the lists that it must have; their entries must have COCO's keys.
    """
    try:
        with Path(PathManager.get_local_path(os.fspath(json_file))).open(encoding="utf-8") as f:
            data = json.load(f)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}; is the file complete?"
        raise AnnotationError(f"{json_file}: is not JSON: {reason}") from None
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8; is the file compressed?"
        raise AnnotationError(f"{json_file}: is not JSON: {reason}") from None
    except OSError as error:
        raise AnnotationError(f"{json_file}: cannot be read: {error.strerror or error}") from None
    if not isinstance(data, dict):
        kind = "is a list, as in a results file" if isinstance(data, list) else "is not a mapping"
        keys = ", ".join(_KEYS)
        raise AnnotationError(f"{json_file}: {kind}: annotations are a mapping with the keys {keys}")
    for part in parts:
        _check_entries(json_file, data.get(part), part)
    return data


def _check_entries(json_file: _PathLike, entries: Any, part: str) -> None:
    """Require a list whose entries have all keys, with values of the right types."""
    if not isinstance(entries, list):
        keys = ", ".join(_KEYS)
        raise AnnotationError(f'{json_file}: has no list "{part}": COCO\'s format has {keys}')
    if part != "annotations" and not entries:
        raise AnnotationError(f'{json_file}: the list "{part}" is empty')
    for key, kinds in _KEYS[part].items():
        for i, entry in enumerate(entries):
            where = f"{json_file}: {part}[{i}]"
            if not isinstance(entry, dict) or key not in entry:
                raise AnnotationError(f'{where} has no "{key}"; it needs {", ".join(_KEYS[part])}')
            if not isinstance(entry[key], kinds):
                noun = "text" if kinds is str else "an integer or text"
                raise AnnotationError(f'{where}: "{key}" {one_line(entry[key], 40)} is not {noun}')
    if len({isinstance(entry["id"], str) for entry in entries}) > 1:
        raise AnnotationError(f'{json_file}: "id" of {part} must be all integers, or all text')


def _check_num_classes(categories: _Entries, num_classes: int | None) -> list[str]:
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
    list_folder = cache(_list_folder)  # one system call per folder is far quicker than one per image
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


def _find_box_and_mask_problems(
    annotations: _Entries, category_ids: set[object], mask_format: str | None, problems: _Problems
) -> None:
    """Find what detectron2 would not correct."""
    for annotation in annotations:
        id, box = annotation["id"], annotation["bbox"]
        if annotation["category_id"] not in category_ids:
            problems["category"].append(f"{id} (category {annotation['category_id']})")
        if not _is_box(box):
            problems["bbox"].append(id)
        elif box[2] < 0 or box[3] < 0:
            problems["negative"].append(id)
        if annotation.get("ignore", 0):
            problems["ignore"].append(id)
        if mask_format and not _is_crowd(annotation):
            segmentation = annotation.get("segmentation")
            if not segmentation:
                problems["no_mask"].append(id)
            elif mask_format == "polygon" and isinstance(segmentation, dict):
                problems["run_length"].append(id)


def _summarize(json_file: _PathLike, data: Mapping[str, _Entries], images_opened: int) -> AnnotationSummary:
    """Count what detectron2 will use, and warn of what it will clip and skip."""
    images = {image["id"]: image for image in data["images"]}
    annotations = [a for a in data["annotations"] if a["image_id"] in images]
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    owners = [images[a["image_id"]] for a in annotations]
    sizes = np.array([(image["width"], image["height"]) for image in owners], dtype=np.float64)
    sizes = sizes.reshape(-1, 2)

    top_left = boxes[:, :2]
    bottom_right = top_left + boxes[:, 2:]
    has_area = (np.minimum(bottom_right, sizes) - top_left.clip(min=0) > 0).all(axis=1)
    exceeds_image = ((top_left < -_BORDER) | (bottom_right > sizes + _BORDER)).any(axis=1)
    is_crowd = np.array([_is_crowd(a) for a in annotations], dtype=bool)
    is_degenerate = np.array([_has_only_degenerate_polygons(a) for a in annotations], dtype=bool)
    is_used = has_area & ~is_crowd & ~is_degenerate
    used = [a for a, use in zip(annotations, is_used, strict=True) if use]

    without_polygon = "annotations whose polygons all have fewer than three points"
    skipped = {
        "boxes without area inside their image": int((~has_area).sum()),
        f"{without_polygon} (kept if they had no segmentation)": int((is_degenerate & has_area).sum()),
        "annotations of images that are not listed": len(data["annotations"]) - len(annotations),
    }
    summary = AnnotationSummary(
        images=len(images),
        boxes=len(used),
        crowds=int(is_crowd.sum()),
        empty_images=len(images.keys() - {a["image_id"] for a in used}),
        clipped=int((exceeds_image & is_used).sum()),
        dropped=sum(skipped.values()),
        masks=sum(bool(a.get("segmentation")) for a in used),
        classes=tuple(c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])),
        images_opened=images_opened,
    )

    parts = [f"clipped: {summary.clipped} boxes that exceed their image"] if summary.clipped else []
    parts += [f"skipped: {count} {noun}" for noun, count in skipped.items() if count]
    if summary.clipped > _MANY_CLIPPED * summary.boxes:
        parts.append("boxes that exceed their image may be two corners instead of [x, y, width, height]")
    if parts:
        logger.warning("%s: %s", json_file, "; ".join(parts))
    return summary


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _has_only_degenerate_polygons(annotation: Mapping[str, Any]) -> bool:
    """Return whether no polygon has three points: detectron2 skips such an annotation with its box."""
    polygons = annotation.get("segmentation")
    return isinstance(polygons, list) and bool(polygons) and not any(map(_is_polygon, polygons))


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(is_number(v, -1e9, 1e9) for v in box)
