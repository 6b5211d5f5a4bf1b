"""Masks of annotations: polygons and run-length masks, checked so that pycocotools' C code can read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

Polygon = list[float]  # x, y, x, y, ... in pixels
Segmentation = list[Polygon] | dict[str, Any]  # polygons, or a compressed run-length mask

# Pixels by which rounding may make a mask exceed its image
_BORDER = 1.0
_MAX_COORDINATE = 1e9
_MIN_POLYGON_NUMBERS = 6  # three points


class SegmentationError(ValueError):
    """A segmentation that is neither polygons nor a run-length mask of its image; the message says why."""


def clean_segmentation(value: Any, width: int, height: int) -> Segmentation | None:
    """Return the mask in a form that pycocotools and detectron2 read, clipped to its image.

    Run-length masks become compressed ones. A single polygon may lack its enclosing list. Polygons of fewer than three
    points are removed, as detectron2 does; if no polygon remains, the list is empty. None if there is no segmentation.

    Args:
        value: the annotation's "segmentation".
        width: width of the image in pixels.
        height: its height.

    Raises:
        SegmentationError: the mask is invalid.
    """
    if isinstance(value, dict):
        return _compressed(value, width, height) if value else None
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise SegmentationError("neither a list nor a mapping")
    if not isinstance(value[0], (list, dict)):
        value = [value]  # the numbers of one polygon
    polygons = []
    for polygon in value:
        numbers = _numbers(polygon)
        if numbers.size >= _MIN_POLYGON_NUMBERS and numbers.size % 2 == 0:
            points = numbers.reshape(-1, 2)
            polygons.append(
                clip_polygon(points, width, height) if _exceeds(points, width, height) else polygon
            )
    return [polygon for polygon in polygons if len(polygon) >= _MIN_POLYGON_NUMBERS]


def _numbers(polygon: Any) -> np.ndarray:
    """Return the numbers of a polygon, which must be finite."""
    numbers = _to_array(polygon)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf"):
        raise SegmentationError("a polygon is not a list of numbers")
    # A single NaN makes both comparisons false
    if numbers.size and not (numbers.min() >= -_MAX_COORDINATE and numbers.max() <= _MAX_COORDINATE):
        raise SegmentationError("a polygon has numbers that are not finite or too large")
    return numbers


def _to_array(value: Any) -> np.ndarray:
    """Return a list as an array; without a dimension if it is no list or has lists of different lengths."""
    try:
        return np.array(value if isinstance(value, list) else None)
    except ValueError:
        return np.array(None)


def _exceeds(points: np.ndarray, width: int, height: int) -> bool:
    """Return whether points (N, 2) lie outside the image by more than rounding explains."""
    lowest, highest = points.min(), points.max()
    if lowest >= -_BORDER and highest <= min(width, height):
        return False
    return bool(lowest < -_BORDER or (points.max(0) > (width + _BORDER, height + _BORDER)).any())


def clip_polygon(points: np.ndarray, width: int, height: int) -> Polygon:
    """Clip a polygon, points (N, 2), to the image by the algorithm of Sutherland and Hodgman (1974)."""
    vertices: list[list[float]] = points.astype(float).tolist()
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        clipped = []
        previous = vertices[-1] if vertices else []
        for vertex in vertices:
            before, after = (sign * (point[axis] - bound) for point in (previous, vertex))
            # The edge crosses the border
            if (before < 0) != (after < 0):
                fraction = before / (before - after)
                crossing = [a + fraction * (b - a) for a, b in zip(previous, vertex, strict=True)]
                crossing[axis] = float(bound)
                clipped.append(crossing)
            if after >= 0:
                clipped.append(vertex)
            previous = vertex
        vertices = clipped
    return [coordinate for vertex in vertices for coordinate in vertex]


def _compressed(mask: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """Return a run-length mask in compressed form, after checking its runs: pycocotools trusts them."""
    size, counts = mask.get("size"), mask.get("counts")
    if isinstance(counts, bytes):  # as pycocotools returns them
        counts = counts.decode("latin-1")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise SegmentationError(f"its size {size} is not the image's, [{height}, {width}]")
    if isinstance(counts, list):
        runs = _to_array(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise SegmentationError("its counts are not integers")
    elif isinstance(counts, str):
        runs = decode_counts(counts)
    else:
        raise SegmentationError("it has no counts")
    if (runs < 0).any() or (runs > width * height).any() or runs.sum() != width * height:
        raise SegmentationError("its counts do not add up to the image's pixels")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    compressed = mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}


def decode_counts(counts: str) -> np.ndarray:
    """Decode the runs of a compressed mask: numbers in groups of 5 bits, differences to the run two before.

    Raises:
        SegmentationError: the text is not of this code.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise SegmentationError("its counts are not a compressed mask") from None
    # Bit 5 says that the number continues; the last group's bit 4 is the sign
    ends = np.flatnonzero((codes & 32) == 0)
    is_complete = ends.size > 0 and ends[-1] == codes.size - 1
    if not is_complete or (codes < 0).any() or (codes > 63).any():
        raise SegmentationError("its counts are not a compressed mask")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 8:
        raise SegmentationError("its counts are not a compressed mask")
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= ((codes[ends] >> 4) & 1) << (5 * (places[ends] + 1))
    # From the fourth run on, each is the difference to the run two before
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def encode_masks(segmentations: Sequence[Segmentation], width: int, height: int) -> list[dict[str, Any]]:
    """Return the compressed run-length mask of each segmentation of an image."""
    return [
        mask_util.merge(mask_util.frPyObjects(mask, height, width)) if isinstance(mask, list) else mask
        for mask in segmentations
    ]


def mask_area(segmentation: Segmentation, width: int, height: int) -> int:
    """Return the number of pixels of a mask inside its image."""
    return int(mask_util.area(encode_masks([segmentation], width, height)[0])) if segmentation else 0


def mask_box(segmentation: Segmentation) -> list[float]:
    """Return the box [x, y, width, height] around a mask; all zero if it has no pixel."""
    if isinstance(segmentation, dict):
        return [float(value) for value in mask_util.toBbox(segmentation)]
    if not segmentation:
        return [0.0] * 4
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return [x0, y0, x1 - x0, y1 - y0]
