"""Clean annotations: fill in what is missing, clip and leave out boxes, and refuse what only the owner can correct.

Training, evaluation, pictures and checks all use the result, so that they agree on what the ground truth is.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fbnetv3.detection.data.annotations.annotation_ids import Id, IdIndex, repeated_ids, sort_by_id
from fbnetv3.detection.data.annotations.annotation_problems import AnnotationProblems
from fbnetv3.detection.data.annotations.annotation_summary import AnnotationSummary
from fbnetv3.detection.data.annotations.box_entries import AnnotationCleaner
from fbnetv3.detection.data.annotations.category_entries import clean_categories
from fbnetv3.detection.data.annotations.coco_files import CocoData, find_format_problem, read_annotations
from fbnetv3.detection.data.annotations.image_entries import check_image_files, clean_images
from fbnetv3.errors import DataError

logger = logging.getLogger(__name__)

MAX_IMAGES_OPENED = 2000


@dataclass(frozen=True)
class CleanAnnotations:
    """Annotations in COCO's format with all of its keys, as training and evaluation use them.

    Ids of images, annotations and categories are numbers from 1; `image_ids` and `category_ids` translate.
    """

    images: list[dict[str, Any]]  # "id", "file_name", "width", "height"
    annotations: list[dict[str, Any]]  # "bbox" clipped to its image, "area", "iscrowd" and so on
    categories: list[dict[str, Any]]  # "id", "name", and what else the file says, such as "keypoints"
    image_ids: list[Id]  # the file's id of each image
    category_ids: list[Id]  # the file's id of each category
    image_root: str  # folder that each "file_name" is relative to
    source: str  # file or folder that they come from, for messages
    summary: AnnotationSummary = field(compare=False)

    @property
    def classes(self) -> list[str]:
        """The names of the categories."""
        return [category["name"] for category in self.categories]


def clean_annotations(
    data: Mapping[str, Any],
    image_root: str | os.PathLike,
    source: str | os.PathLike,
    *,
    mask_format: str | None = None,
    max_opened: int | None = 0,
    need_boxes: bool = False,
) -> CleanAnnotations:
    """Clean annotations in COCO's format, and report all problems in one error.

    One line of the log says what was filled in, clipped and left out. `data` is not changed.

    Args:
        data: "images", "annotations" and "categories" as in COCO's files; annotation ids may be text such as
            "labels/a.txt:3", which then names the annotation in error messages.
        image_root: the folder that each image's `file_name` is relative to.
        source: the file or folder that the annotations come from, for messages.
        mask_format: `INPUT.MASK_FORMAT`, "polygon" or "bitmask", if every box needs a mask, as for Mask R-CNN.
        max_opened: number of images, evenly spaced, to open in order to compare their sizes and find corrupt files;
            None opens all. By default, image files are read only for missing sizes.
        need_boxes: whether there must be a box to train on.

    Raises:
        DataError: the annotations or images have problems; the message lists all of them.
    """
    if problem := find_format_problem(data):
        raise DataError(f"{source}: {problem}")
    problems = AnnotationProblems()
    filled: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    root = os.fspath(image_root)

    # Images and categories, in the order of their ids
    _find_repeated_images(data, problems)
    image_entries = sort_by_id(data["images"])
    images = clean_images(image_entries, root, filled, problems)
    classes, namesakes = clean_categories(data["categories"], data["annotations"], problems)
    left_out["categories"] = len(namesakes)
    categories = [{**entry, "id": number} for number, entry in enumerate(classes, 1)]
    image_ids = [entry["id"] for entry in image_entries]
    category_ids = [entry["id"] for entry in classes]

    # Annotations
    image_index, category_index = IdIndex(image_ids), IdIndex(category_ids)
    cleaner = AnnotationCleaner(
        images, image_index, categories, category_index, mask_format, problems, filled, left_out
    )
    annotations = cleaner.clean_all(data["annotations"])
    opened = 0
    if max_opened is None or max_opened > 0:
        opened = check_image_files(images, root, max_opened, problems)
    is_sample = opened == max_opened and 0 < opened < len(images)
    problems.raise_if_any(
        os.fspath(source), f"{opened} of {len(images)} images were opened" if is_sample else ""
    )

    summary = _summarize(images, annotations, categories)
    summary.images_opened, summary.clipped = opened, cleaner.num_clipped
    summary.filled, summary.left_out = filled, left_out
    if need_boxes and not summary.boxes:
        count = len(data["annotations"])
        raise DataError(f"{source}: none of its {count} annotations has a box to train on")
    if changes := summary.describe_changes():
        is_lossy = summary.clipped or left_out.total()
        logger.log(logging.WARNING if is_lossy else logging.INFO, "%s: %s", source, changes)
    return CleanAnnotations(
        images, annotations, categories, image_ids, category_ids, root, os.fspath(source), summary
    )


def _summarize(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
) -> AnnotationSummary:
    boxes = [annotation for annotation in annotations if not annotation["iscrowd"]]
    corners = ((x + width, y + height) for x, y, width, height in (box["bbox"] for box in boxes))
    return AnnotationSummary(
        classes=[category["name"] for category in categories],
        images=len(images),
        boxes=len(boxes),
        crowds=len(annotations) - len(boxes),
        masks=sum("segmentation" in annotation for annotation in boxes),
        empty_images=len(images) - len({annotation["image_id"] for annotation in boxes}),
        fractions=bool(boxes) and all(max(corner) <= 1 for corner in corners),
    )


def read_clean_annotations(
    json_file: str | os.PathLike, image_root: str | os.PathLike, **options: Any
) -> CleanAnnotations:
    """Read and clean a COCO-format file; `options` are those of `clean_annotations`."""
    return clean_annotations(read_annotations(json_file), image_root, json_file, **options)


def check_annotations(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    mask_format: str | None = None,
    max_opened: int | None = MAX_IMAGES_OPENED,
    need_boxes: bool = True,
) -> AnnotationSummary:
    """Check a COCO-format annotation file and its images, and report all problems in one error.

    The arguments are those of `clean_annotations`, but images are opened.

    Raises:
        DataError: the file or the images have problems; the message lists all of them.
    """
    clean = read_clean_annotations(
        json_file, image_root, mask_format=mask_format, max_opened=max_opened, need_boxes=need_boxes
    )
    return clean.summary


def read_category_entries(json_file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the categories of a COCO-format file; see `category_entries`."""
    return category_entries(read_annotations(json_file, ("categories",)), json_file)


def category_entries(data: Mapping[str, Any], source: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the categories of COCO-format data with its own ids, in their order; see `clean_categories`.

    Images and annotations may be missing. `source` is the file or folder for messages.

    Raises:
        DataError: ids are repeated, or categories that are used have equal names.
    """
    return _select_categories(data, source, AnnotationProblems())


def read_image_and_category_entries(json_file: str | os.PathLike) -> CocoData:
    """Return the images and categories of a COCO-format file with the file's ids, as results files have them.

    Annotations may be missing. The lists are in the order of the ids.

    Raises:
        DataError: ids are repeated, or categories that are used have equal names.
    """
    data = read_annotations(json_file, ("images", "categories"))
    problems = AnnotationProblems()
    _find_repeated_images(data, problems)
    categories = _select_categories(data, json_file, problems)
    return {"images": [dict(entry) for entry in sort_by_id(data["images"])], "categories": categories}


def _find_repeated_images(data: Mapping[str, Any], problems: AnnotationProblems) -> None:
    for image_id in repeated_ids(data["images"]):
        problems.add("repeated_id", f"{image_id} of images")


def _select_categories(
    data: Mapping[str, Any], source: str | os.PathLike, problems: AnnotationProblems
) -> list[dict[str, Any]]:
    """Return the categories that are kept, after raising all problems so far."""
    annotations: Any = data.get("annotations")
    usable = annotations if isinstance(annotations, list) else []
    entries = [entry for entry in usable if isinstance(entry, dict)]
    categories, _ = clean_categories(data["categories"], entries, problems)
    problems.raise_if_any(os.fspath(source))
    return [dict(entry) for entry in categories]
