"""Statistics of clean annotations: what there is to train on, and what was filled in, clipped and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_FILLED = {
    "size": "width and height from the image files",
    "backslash": "slashes in file names",
    "id": "annotation ids that are missing, repeated or 0",
    "iscrowd": "iscrowd",
    "ignore": "iscrowd where ignore is set",
    "area": "area",
    "bbox": "bbox from the mask",
    "reference": "references to ids that are text in one place and numbers in another",
}
_LEFT_OUT = {
    "no_area": "boxes without area inside their image",
    "degenerate": "annotations whose polygons all have fewer than three points (kept if they had no segmentation)",
    "unlisted": "annotations of images that are not listed",
    "categories": "categories without annotations that have the name of another category",
}
# Names of COCO's sizes of objects, and its limits between them: the sides in pixels of squares of the same area
SIZE_NAMES = ("small", "medium", "large")
SIZE_LIMITS = (32, 96)
# Fraction of clipped boxes above which they are probably corners instead of [x, y, width, height]
_MANY_CLIPPED = 0.1


@dataclass
class AnnotationSummary:
    """Statistics of annotations after cleaning."""

    classes: list[str]  # in the order of the category ids
    images: int
    images_opened: int = 0  # to compare their sizes
    empty_images: int = 0  # without a box to train on
    boxes: int = 0  # to train on: not crowds, with an area, of a listed image
    masks: int = 0  # boxes that have a segmentation
    crowds: int = 0  # regions of many objects: not trained on; detections in them are no mistakes
    clipped: int = 0  # boxes that exceeded their image by more than a pixel
    fractions: bool = (
        False  # every box lies in the first pixel, as if it were a fraction of the image's size
    )
    filled: Counter[str] = field(default_factory=Counter)  # values filled in, by kind
    left_out: Counter[str] = field(default_factory=Counter)  # entries left out, by kind

    @property
    def skipped(self) -> int:
        """Annotations left out, of listed images or not."""
        return self.left_out.total() - self.left_out["categories"]

    def describe_changes(self) -> str:
        """Return in one line what differs from the file, with the number of each; "" if nothing does."""
        parts = [
            _count_list("filled in", self.filled, _FILLED),
            f"clipped: boxes that exceed their image ({self.clipped})" if self.clipped else "",
            _count_list("left out", self.left_out, _LEFT_OUT),
        ]
        if self.clipped > _MANY_CLIPPED * self.boxes:
            parts.append(
                "boxes that exceed their image may be two corners instead of [x, y, width, height]"
            )
        if self.fractions:
            parts.append("all boxes lie in the first pixel of their image: are they in pixels?")
        return "; ".join(filter(None, parts))


def _count_list(verb: str, counts: Counter[str], nouns: Mapping[str, str]) -> str:
    texts = [f"{noun} ({counts[kind]})" for kind, noun in nouns.items() if counts[kind]]
    return f"{verb}: {', '.join(texts)}" if texts else ""
