"""COCO-format annotations: read, and checked against their images before a training starts, with errors that name both
what is wrong and what to do about it."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from fbnetv3.data.upright import orientation, upright_size
from fbnetv3.errors import DataError

logger = logging.getLogger(__name__)

SIZES_CHECKED = 2000
_SHOWN = 3
_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "id": (int, str),
    "image_id": (int, str),
    "category_id": (int, str),
    "file_name": str,
    "name": str,
}
# Clipping is the rule, by rounding, for boxes that reach a pixel out of their image: only more is worth a word.
_SLACK = 1.0
_FAR = 1e9  # no coordinate lies further out: infinity, and NaN, do not compare as smaller
_SUSPICIOUS = 0.1


class AnnotationError(DataError):
    """An annotation file that is damaged, incomplete, or does not fit its images or the network."""


@dataclass(frozen=True)
class AnnotationSummary:
    """What an annotation file holds.

    Attributes:
        images: how many images there are.
        boxes: annotations that can be trained on: of an image of the file, with an area, not of a crowd.
        crowds: annotations of crowds, which detectron2 leaves out in training.
        empty_images: images without a box to train on.
        clipped: boxes that reach out of their image; detectron2 cuts them off at its border.
        dropped: annotations that detectron2 leaves out: without an area within the image, or of no image of the file.
        masks: boxes that come with a segmentation.
        classes: names of the categories in the order of their ids, which is that of a network's outputs.
        sizes_checked: images whose files were opened to compare their sizes.
    """

    images: int
    boxes: int
    crowds: int
    empty_images: int
    clipped: int
    dropped: int
    masks: int
    classes: tuple[str, ...]
    sizes_checked: int

    def __str__(self) -> str:
        return (
            f"{self.images:,} images, {self.boxes:,} boxes of {len(self.classes)} classes, "
            f"{self.empty_images:,} images without a box"
        )


def check_annotations(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    num_classes: int | None = None,
    *,
    mask_format: str | None = None,
    sizes: int | None = SIZES_CHECKED,
    need_boxes: bool = True,
) -> AnnotationSummary:
    """Check a COCO-format file and its images, all that can be wrong at once.

    What detectron2 puts right by itself gives one warning with counts: boxes that reach out of their image, which it
    clips, and boxes without an area, annotations of no image and segmentations of too few points, which it leaves out.
    All else is an error.

    Args:
        json_file: the annotations, of the format of COCO's `instances_*.json`.
        image_root: folder from which each image's `file_name` leads to it.
        num_classes: classes of the network, without the background; None to leave them unchecked.
        mask_format: `INPUT.MASK_FORMAT`, "polygon" or "bitmask", where every box needs a mask, as for Mask R-CNN; None
            where masks are not wanted.
        sizes: how many images, evenly spread, to open in order to compare their sizes and find damaged ones; None for
            all. (detectron2 refuses an image of another size only once training comes across it.)
        need_boxes: whether there must be a box to train on; not so for images to evaluate on.

    Returns:
        What the file holds.

    Raises:
        AnnotationError: the file is missing, no JSON, or lacks keys; images are missing, damaged or of another size
            than the file says; annotations are of unknown categories, or have no proper box or mask; ids are there
            twice; the number of classes is not the network's; there is no box to train on.
    """
    data = read_annotations(json_file)
    images, annotations, categories = data["images"], data["annotations"], data["categories"]
    problems = [*_repeated(data), *_classes(categories, num_classes)]
    checked, found = _image_problems(images, os.fspath(image_root), sizes)
    problems += [*found, *_annotation_problems(annotations, categories, mask_format)]
    if problems:
        raise AnnotationError(f"{json_file}: {'; '.join(problems)}")
    by_id = {image["id"]: image for image in images}
    known = [annotation for annotation in annotations if annotation["image_id"] in by_id]
    boxes = np.array([annotation["bbox"] for annotation in known], dtype=np.float64).reshape(-1, 4)
    sides = [(image["width"], image["height"]) for image in (by_id[a["image_id"]] for a in known)]
    area, out = _within(boxes, np.array(sides, dtype=np.float64).reshape(-1, 2))
    crowd, thin = (np.array([test(a) for a in known], dtype=bool) for test in (_is_crowd, _is_thin))
    used = area & ~crowd & ~thin
    trained = [annotation for annotation, use in zip(known, used, strict=True) if use]
    left_out = {
        "boxes have no area within their image": int((~area).sum()),
        "annotations have polygons of fewer than three points (without a segmentation they would stay)": int(
            (thin & area).sum()
        ),
        "annotations belong to no image of the file": len(annotations) - len(known),
    }
    summary = AnnotationSummary(
        images=len(images),
        boxes=len(trained),
        crowds=int(crowd.sum()),
        empty_images=len(by_id.keys() - {annotation["image_id"] for annotation in trained}),
        clipped=int((out & used).sum()),
        dropped=sum(left_out.values()),
        masks=sum(bool(annotation.get("segmentation")) for annotation in trained),
        classes=tuple(category["name"] for category in sorted(categories, key=lambda category: category["id"])),
        sizes_checked=checked,
    )
    _warn(json_file, summary, left_out)
    if need_boxes and not summary.boxes:
        raise AnnotationError(f"{json_file}: has no box to train on among its {len(annotations)} annotations")
    return summary


def read_annotations(
    json_file: str | os.PathLike, parts: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, list[dict[str, Any]]]:
    """Read a COCO-format file.

    Args:
        json_file: the file.
        parts: the lists that it must have, and whose entries must have the keys that COCO's have.

    Returns:
        What the file holds.

    Raises:
        AnnotationError: the file is missing, no JSON (with line and column), or lacks lists or keys.
    """
    try:
        with Path(PathManager.get_local_path(os.fspath(json_file))).open(encoding="utf-8") as f:
            data = json.load(f)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{json_file}: line {error.lineno}, column {error.colno}: no JSON: {error.msg}; was it copied whole?"
        ) from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{json_file}: no JSON: byte {error.start} is not UTF-8; is it compressed?") from None
    except RecursionError:
        raise AnnotationError(f"{json_file}: no JSON: nested too deeply") from None
    except OSError as error:
        raise AnnotationError(f"{json_file}: cannot be read: {error.strerror or error}") from None
    if isinstance(data, list):
        raise AnnotationError(
            f"{json_file}: is a list, as results are: annotations are a mapping with {', '.join(_KEYS)}"
        )
    if not isinstance(data, dict):
        raise AnnotationError(f"{json_file}: is no mapping with {', '.join(_KEYS)}")
    for part in parts:
        _check_part(json_file, data, part)
    return data


def _check_part(json_file: str | os.PathLike, data: Mapping[str, Any], part: str) -> None:
    """Refuse a list that is missing, or entries without the keys they need, or with ids and names of no use."""
    if not isinstance(data.get(part), list):
        raise AnnotationError(f'{json_file}: has no list "{part}": COCO\'s format has {", ".join(_KEYS)}')
    if part != "annotations" and not data[part]:
        raise AnnotationError(f'{json_file}: the list "{part}" is empty')
    for key in _KEYS[part]:
        lacking = [i for i, entry in enumerate(data[part]) if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise AnnotationError(
                f'{json_file}: {len(lacking)} of {len(data[part])} {part} have no "{key}": {part}'
                f"[{lacking[0]}]{' and others' if len(lacking) > 1 else ''}; each needs {', '.join(_KEYS[part])}"
            )
    for key, kinds in _KINDS.items():
        wrong = [entry[key] for entry in data[part] if key in _KEYS[part] and not isinstance(entry[key], kinds)]
        if wrong or (key == "id" and len({isinstance(entry[key], str) for entry in data[part]}) > 1):
            shown = f", such as {json.dumps(wrong[0])[:40]}" if wrong else ""
            wanted = "text" if kinds is str else "all whole numbers, or all text"
            raise AnnotationError(f'{json_file}: "{key}" of {part} must be {wanted}{shown}')


def _repeated(data: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Ids that are there more than once: COCO's tools would lose all but one."""
    problems = []
    for part in _KEYS:
        twice = [key for key, count in Counter(entry["id"] for entry in data[part]).items() if count > 1]
        if twice:
            problems.append(f"{len(twice)} ids of {part} are there more than once: {_some(twice)}; number them anew")
    return problems


def _classes(categories: Sequence[Mapping[str, Any]], num_classes: int | None) -> list[str]:
    count = len(categories)
    if num_classes is None or num_classes == count:
        return []
    return [
        f"has {count} categories ({_some([c['name'] for c in categories])}), the network {num_classes} classes: set "
        f"MODEL.ROI_HEADS.NUM_CLASSES {count} (for RetinaNet MODEL.RETINANET.NUM_CLASSES {count})"
    ]


def _image_problems(images: Sequence[Mapping[str, Any]], root: str, sizes: int | None) -> tuple[int, list[str]]:
    """How many images were opened, and what is wrong with the images."""
    if wrong := [image for image in images if not all(_is_count(image[side]) for side in ("width", "height"))]:
        shown = _some([image["file_name"] for image in wrong])
        return 0, [f"{len(wrong)} images have a width or height that is no number of pixels: {shown}"]
    if not os.path.isdir(root):
        return 0, [f"there is no folder {root} with its images: give the one that each file_name leads from"]
    names = cache(lambda folder: frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset())
    paths = [os.path.join(root, str(image["file_name"])) for image in images]
    there = [os.path.basename(path) in names(os.path.dirname(path)) for path in paths]
    problems = []
    if missing := [image["file_name"] for image, is_there in zip(images, there, strict=True) if not is_there]:
        problems.append(
            f"{len(missing)} of {len(images)} images are not below {root}: {_some(missing)}; give the folder that each "
            "file_name leads from, or put them there, or take them out of the file"
        )
    present = [(image, path) for image, path, is_there in zip(images, paths, there, strict=True) if is_there]
    count = len(present) if sizes is None else min(sizes, len(present))
    chosen = [present[i * len(present) // count] for i in range(count)]
    damaged, others = [], []
    for image, path in chosen:
        expected = image["width"], image["height"]
        try:
            found, turned = _size_of(path)
        except Exception as error:  # Pillow's readers raise almost anything on damaged bytes
            damaged.append(f"{image['file_name']} ({' '.join(str(error).split())[:80]})")
            continue
        if found != expected:
            note = ", turned upright as its EXIF says" if turned else ""
            others.append(f"{image['file_name']} is {found[0]} x {found[1]}{note}, not {expected[0]} x {expected[1]}")
    of = f" of {count} that were opened" if count < len(present) else ""
    if damaged:
        problems.append(f"{len(damaged)} images{of} are damaged: {_some(damaged)}; replace them or take them out")
    if others:
        problems.append(
            f"{len(others)} images{of} have another size than the file says (width x height): {_some(others)}; correct "
            "the file, boxes too where images were resized"
        )
    return count, problems


def _size_of(path: str) -> tuple[tuple[int, int], bool]:
    """Width and height as detectron2 will see them, and whether EXIF swaps them."""
    with Image.open(path) as image:
        return upright_size(image), orientation(image) >= 5


def _annotation_problems(
    annotations: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]], mask_format: str | None
) -> list[str]:
    """What is wrong with annotations that detectron2 would not put right."""
    known = {category["id"] for category in categories}
    unknown, no_box, negative, ignored, no_mask, encoded = [], [], [], [], [], []
    for annotation in annotations:
        name, box = str(annotation["id"]), annotation["bbox"]
        if annotation["category_id"] not in known:
            unknown.append(f"category {annotation['category_id']} of annotation {name}")
        if not _is_box(box):
            no_box.append(name)
        elif box[2] < 0 or box[3] < 0:
            negative.append(name)
        if annotation.get("ignore", 0):
            ignored.append(name)
        if mask_format and not _is_crowd(annotation):
            if not annotation.get("segmentation"):
                no_mask.append(name)
            elif mask_format == "polygon" and isinstance(annotation["segmentation"], dict):
                encoded.append(name)
    found = (
        (unknown, 'are of categories that "categories" lacks', "add these there, or remove the annotations"),
        (no_box, 'have a "bbox" that is no list of four finite numbers', "it is [x, y, width, height] in pixels"),
        (negative, "have boxes of negative width or height", "a box is [x, y, width, height], not two corners"),
        (ignored, 'have "ignore", which detectron2 does not know', "remove them, or make them crowds (iscrowd 1)"),
        (encoded, "have run-length masks instead of polygons", "set INPUT.MASK_FORMAT bitmask"),
        (no_mask, 'have no "segmentation"', "add them, or set MODEL.MASK_ON False to train on boxes alone"),
    )
    return [f"{len(which)} annotations {what}: {_some(which)}; {remedy}" for which, what, remedy in found if which]


def _within(boxes: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes (N, 4) as x, y, width, height, in images of (width, height): which have an area within, and which reach
    out."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    area = (np.minimum(high, sides) - low.clip(min=0) > 0).all(axis=1)
    out = (low < -_SLACK).any(axis=1) | (high > sides + _SLACK).any(axis=1)
    return area, out


def _warn(json_file: str | os.PathLike, summary: AnnotationSummary, left_out: Mapping[str, int]) -> None:
    """One line for all that detectron2 puts right."""
    parts = [f"{summary.clipped} boxes reach out of their image and are clipped"] if summary.clipped else []
    parts += [f"{count} {what} and are left out" for what, count in left_out.items() if count]
    if summary.clipped > _SUSPICIOUS * summary.boxes:
        parts.append("so many reach out that they may be two corners instead of [x, y, width, height]")
    if parts:
        logger.warning("%s: %s", json_file, "; ".join(parts))


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _is_thin(annotation: Mapping[str, Any]) -> bool:
    """Whether there are polygons but none with three points: detectron2 leaves out the annotation, box and all."""
    polygons = annotation.get("segmentation")
    return isinstance(polygons, list) and bool(polygons) and not any(_is_polygon(polygon) for polygon in polygons)


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < _FAR for v in box)
    )


def _some(names: Iterable[object]) -> str:
    """The first few of what may be many."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
