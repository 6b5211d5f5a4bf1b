"""Clean the annotations of an annotation file: boxes, areas, masks, keypoints and crowds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fbnetv3.detection.data.annotations.annotation_ids import IdIndex, is_id
from fbnetv3.detection.data.annotations.annotation_problems import AnnotationProblems
from fbnetv3.detection.data.annotations.mask_shapes import (
    Segmentation,
    SegmentationError,
    clean_segmentation,
    mask_area,
    mask_box,
)
from fbnetv3.utils.checks import is_number
from fbnetv3.utils.text import one_line

# Pixels by which rounding may make a box exceed its image; such a box does not count as clipped
_BORDER = 1.0
# Pixels below which a box counts as without area: networks compute in float32, which cannot represent its sides
_MIN_SIDE = 0.1
_MAX_COORDINATE = 1e9
_FLAGS = (None, 0, 1)
_UNUSABLE_IDS = ("None", "0", "0.0", "False", "")

_Entry = Mapping[str, Any]


@dataclass
class AnnotationCleaner:
    """Cleans annotations one by one."""

    images: Sequence[_Entry]  # clean
    image_index: IdIndex  # positions of the images by the file's ids
    categories: Sequence[_Entry]  # clean
    category_index: IdIndex  # positions of the categories by the file's ids
    mask_format: str | None  # "polygon" or "bitmask" if every box needs a mask
    problems: AnnotationProblems  # receives what is refused
    filled: Counter[str]  # values filled in, by kind
    left_out: Counter[str]  # annotations left out, by kind
    num_clipped: int = 0  # boxes that exceeded their image
    _num_keypoints: int | None = None  # of the annotations so far

    def clean_all(self, entries: Sequence[_Entry]) -> list[dict[str, Any]]:
        """Return the annotations to use, with ids from 1 and all of COCO's keys."""
        self.filled["id"] += _count_unusable_ids(entries)
        annotations: list[dict[str, Any]] = []
        for position, entry in enumerate(entries):
            annotation = self._clean(entry, position)
            if annotation is not None:
                annotations.append({"id": len(annotations) + 1, **annotation})
        return annotations

    def _clean(self, entry: _Entry, position: int) -> dict[str, Any] | None:
        """Return a clean annotation; None if it is left out or refused."""
        entry_id = entry.get("id")
        name = f"annotations[{position}]" if entry_id is None else _id_text(entry_id)
        if not is_id(entry.get("image_id")):
            self.problems.add("no_image_id", name)
            return None
        image_position = self._find(self.image_index, entry["image_id"])
        if image_position is None:
            self.left_out["unlisted"] += 1
            return None

        # Check everything, so that all problems are reported at once
        image = self.images[image_position]
        name = f"{name} of {image['file_name']}"
        category_position = self._category_position(entry, name)
        is_crowd = self._is_crowd(entry, name)
        if not image["width"] or not image["height"]:  # reported already
            return None
        mask = self._mask(entry, image, name, bool(is_crowd))
        box = self._box(entry, mask, name)
        keypoints = self._keypoints(entry, category_position, name)
        area = self._stated_area(entry, name)
        if box is None or category_position is None or is_crowd is None:
            return None
        shape = self._clip(box, mask, area, image, is_crowd)
        if shape is None:
            return None
        annotation = {
            "image_id": image["id"],
            "category_id": category_position + 1,
            **shape,
            "iscrowd": int(is_crowd),
        }
        if keypoints is not None:
            annotation["keypoints"] = keypoints
            annotation["num_keypoints"] = sum(value > 0 for value in keypoints[2::3])
        return annotation

    def _clip(
        self,
        box: Sequence[float],
        mask: Segmentation | None,
        area: float | None,
        image: _Entry,
        is_crowd: bool,
    ) -> dict[str, Any] | None:
        """Return the box clipped to its image, with its area and mask; None if nothing can be learned from it."""
        if mask == []:
            self.left_out["degenerate"] += 1
            return None
        clipped_box, excess = _clip_box(box, image)
        if min(clipped_box[2:]) < _MIN_SIDE:
            self.left_out["no_area"] += 1
            return None
        is_clipped = excess > _BORDER
        self.num_clipped += is_clipped and not is_crowd
        if area is None or is_clipped or not 0 < area <= image["width"] * image["height"]:
            self.filled["area"] += not is_clipped
            pixels = mask_area(mask, image["width"], image["height"]) if mask else 0
            area = pixels or clipped_box[2] * clipped_box[3]
        shape: dict[str, Any] = {"bbox": clipped_box, "area": float(area)}
        return shape if mask is None else {**shape, "segmentation": mask}

    def _find(self, index: IdIndex, reference: Any) -> int | None:
        position, is_exact = index.find(reference)
        self.filled["reference"] += not is_exact
        return position

    def _category_position(self, entry: _Entry, name: str) -> int | None:
        category_id = entry.get("category_id")
        if not is_id(category_id):
            self.problems.add("no_category_id", name)
            return None
        position = self._find(self.category_index, category_id)
        if position is None:
            self.problems.add("category", f"{name} (category {one_line(category_id, 40)})")
        return position

    def _is_crowd(self, entry: _Entry, name: str) -> bool | None:
        """Return whether an annotation is a crowd, or to be ignored, which means the same; None if refused."""
        is_crowd, ignore = entry.get("iscrowd"), entry.get("ignore")
        if is_crowd not in _FLAGS or ignore not in _FLAGS:
            self.problems.add("iscrowd", name)
            return None
        self.filled["iscrowd"] += is_crowd is None and not ignore
        self.filled["ignore"] += bool(ignore) and not is_crowd
        return bool(is_crowd or ignore)

    def _mask(self, entry: _Entry, image: _Entry, name: str, is_crowd: bool) -> Segmentation | None:
        try:
            mask = clean_segmentation(entry.get("segmentation"), image["width"], image["height"])
        except SegmentationError as error:
            self.problems.add("segmentation", f"{name} ({error})")
            return None
        # Crowds need no mask, because training skips them
        if self.mask_format and not is_crowd:
            if mask is None:
                self.problems.add("no_mask", name)
            elif self.mask_format == "polygon" and isinstance(mask, dict):
                self.problems.add("run_length", name)
        return mask

    def _box(self, entry: _Entry, mask: Segmentation | None, name: str) -> Sequence[float] | None:
        """Return the box [x, y, width, height], or that of the mask; None if it is refused."""
        box = entry.get("bbox")
        if box is None or box == []:
            if mask is None:
                self.problems.add("no_bbox", name)
                return None
            self.filled["bbox"] += 1
            return mask_box(mask)
        if not isinstance(box, list) or not all(map(_is_coordinate, box)):
            self.problems.add("bbox", f"{name} ({one_line(box, 60)})")
        elif len(box) == 5:
            self.problems.add("rotated", name)
        elif len(box) != 4:
            self.problems.add("bbox", f"{name} ({one_line(box, 60)})")
        elif min(box[2:]) < 0:
            self.problems.add("negative", name)
        else:
            return box
        return None

    def _stated_area(self, entry: _Entry, name: str) -> float | None:
        area = entry.get("area")
        if area is None:
            return None
        if isinstance(area, bool) or not isinstance(area, (int, float)):
            self.problems.add("area", f"{name} ({one_line(area, 40)})")
            return None
        return area

    def _keypoints(self, entry: _Entry, category_position: int | None, name: str) -> list[float] | None:
        keypoints = entry.get("keypoints")
        if keypoints is None or keypoints == []:
            return None
        expected = self._num_keypoints
        if category_position is not None:
            names = self.categories[category_position].get("keypoints")
            expected = len(names) if isinstance(names, list) and names else expected
        is_list = isinstance(keypoints, list) and len(keypoints) % 3 == 0
        if (
            not is_list
            or not all(map(_is_coordinate, keypoints))
            or len(keypoints) // 3 != (expected or len(keypoints) // 3)
        ):
            self.problems.add("keypoints", name)
            return None
        self._num_keypoints = len(keypoints) // 3
        return keypoints


def _is_coordinate(value: Any) -> bool:
    return is_number(value, -_MAX_COORDINATE, _MAX_COORDINATE)


def _clip_box(box: Sequence[float], image: _Entry) -> tuple[list[float], float]:
    """Return a box [x, y, width, height] clipped to its image, and by how many pixels it exceeded it."""
    x0, y0, width, height = (float(value) for value in box)
    x1 = x0 + width
    y1 = y0 + height
    excess = max(-x0, -y0, x1 - image["width"], y1 - image["height"])
    if excess <= 0:
        return [x0, y0, width, height], excess
    x0, x1 = (min(max(x, 0.0), float(image["width"])) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), float(image["height"])) for y in (y0, y1))
    return [x0, y0, x1 - x0, y1 - y0], excess


def _count_unusable_ids(entries: Sequence[_Entry]) -> int:
    """Count annotation ids that pycocotools would misread: missing, 0, or repeated."""
    ids = [_id_text(entry.get("id")) for entry in entries]
    counts = Counter(ids)
    return sum(text in _UNUSABLE_IDS or counts[text] > 1 for text in ids)


def _id_text(entry_id: Any) -> str:
    return str(entry_id) if isinstance(entry_id, int) else one_line(entry_id, 60)
