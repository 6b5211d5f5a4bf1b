"""A training image with its annotations, and geometry that both follow: transforms, crops, placement on a canvas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

Annotation = dict[str, Any]
Size = tuple[int, int]  # height and width in pixels

VISIBLE = "visible"
"""Key of an annotation: the fraction of its object that crops and other objects have left."""


@dataclass
class TrainingSample:
    """An image, uint8 (height, width, channels), and annotations with boxes of four corners in its pixels.

    Masks are polygons, or bitmaps, uint8 (height, width). Keypoints are an array (number, 3) of x, y and visibility.
    """

    image: np.ndarray
    annotations: list[Annotation]

    @property
    def size(self) -> Size:
        """Height and width of the image."""
        height, width = self.image.shape[:2]
        return height, width


def transform_annotation(
    annotation: Annotation,
    transforms: T.TransformList,
    old_size: Size,
    new_size: Size,
    *,
    bitmaps: bool = False,
    flip_indices: Sequence[int] | None = None,
) -> Annotation:
    """Apply transforms to an annotation's box, mask and keypoints, and clip them to the new image.

    Keypoints outside become unlabeled. The fraction of the box that remains is recorded, see `VISIBLE`.

    Args:
        annotation: it may be modified.
        transforms: what was applied to the image.
        old_size: size of the image before.
        new_size: size of the image after.
        bitmaps: turn masks into bitmaps; required for transforms that crop.
        flip_indices: for each keypoint, the index of its mirror image.
    """
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    limits = np.array([old_size[1], old_size[0]] * 2)
    full_box = transforms.apply_box(np.clip(np.array([box], dtype=float), 0, limits))[0]
    segmentation = annotation.pop("segmentation", None) if bitmaps else None
    annotation = detection_utils.transform_instance_annotations(
        annotation, transforms, new_size, keypoint_hflip_indices=flip_indices
    )
    if segmentation is not None and len(segmentation):
        annotation["segmentation"] = _transform_mask(segmentation, transforms, new_size)
    full_area = _area(full_box)
    fraction = _area(annotation["bbox"]) / full_area if full_area > 0 else 0.0
    annotation[VISIBLE] = annotation.get(VISIBLE, 1.0) * min(1.0, fraction)
    return annotation


def _transform_mask(segmentation: Any, transforms: T.TransformList, size: Size) -> np.ndarray:
    """Return a mask as a bitmap of the transformed image."""
    if isinstance(segmentation, list):
        # Drawing a polygon cuts off what lies outside; fvcore's cropping of polygons needs shapely
        polygons = []
        for polygon in segmentation:
            points = transforms.apply_coords(np.array(polygon, dtype=float).reshape(-1, 2))
            polygons.append(points.reshape(-1))
        return detection_utils.polygons_to_bitmask(polygons, *size).astype(np.uint8)
    bitmap = segmentation if isinstance(segmentation, np.ndarray) else mask_util.decode(segmentation)
    return np.array(transforms.apply_segmentation(bitmap))  # contiguous and writable


def place_on_canvas(
    sample: TrainingSample, canvas: np.ndarray, scale: float, corner: tuple[int, int], window: Sequence[int]
) -> list[Annotation]:
    """Draw a scaled image on a part of a canvas. Return its annotations, as bitmaps of the canvas, clipped to the part.

    Args:
        sample: the image; masks must be bitmaps. Its annotations may be modified.
        canvas: (height, width, channels), modified.
        scale: factor of the image's sides.
        corner: x and y of the image's upper left corner on the canvas; may be negative.
        window: the part of the canvas, (x0, y0, x1, y1); nothing is drawn outside.
    """
    old_height, old_width = sample.size
    height, width = (max(1, round(side * scale)) for side in sample.size)
    x, y = corner
    x0, y0 = max(window[0], x), max(window[1], y)
    x1, y1 = min(window[2], x + width), min(window[3], y + height)
    if x1 <= x0 or y1 <= y0:
        return []
    crop = T.CropTransform(x0 - x, y0 - y, x1 - x0, y1 - y0)
    transforms = T.TransformList([T.ResizeTransform(old_height, old_width, height, width), crop])
    canvas[y0:y1, x0:x1] = transforms.apply_image(sample.image)

    # Clip to the part that is drawn, then move it to its place
    part = (y1 - y0, x1 - x0)
    canvas_height, canvas_width = canvas.shape[:2]
    pad = T.TransformList([T.PadTransform(x0, y0, canvas_width - x1, canvas_height - y1)])
    annotations = []
    for annotation in sample.annotations:
        clipped = transform_annotation(annotation, transforms, sample.size, part, bitmaps=True)
        annotations.append(
            transform_annotation(clipped, pad, part, (canvas_height, canvas_width), bitmaps=True)
        )
    return annotations


def drop_hidden(annotations: Iterable[Annotation], min_visible: float) -> list[Annotation]:
    """Return the annotations of which at least a fraction is visible; without the key `VISIBLE`."""
    annotations = [a for a in annotations if a.get(VISIBLE, 1.0) >= min_visible]
    for annotation in annotations:
        annotation.pop(VISIBLE, None)
    return annotations


def _area(box: Sequence[float]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
