"""Lines of YOLO label files: boxes, polygons and keypoints in fractions of the image."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

from fbnetv3.detection.data.formats.annotation_source import round_pixels

_BOX_VALUES = 5  # class, center x, center y, width, height
EXACT = ".12g"
"""Format of fractions with enough digits to give back pixels to a millionth."""
_MAX_FRACTION = 2.0  # above it, coordinates are pixels


class LabelLineError(ValueError):
    """A line that is not as the format requires."""


def parse_label_line(
    line: str,
    size: tuple[int, int],
    class_ids: Container[int],
    keypoints: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the parts of a COCO annotation that a line has: category, box in pixels, and polygon or keypoints.

    Args:
        line: "class x y width height" with the box's center, or "class x1 y1 x2 y2 x3 y3 ..." with a polygon's points;
            with `keypoints`, these follow the box.
        size: width and height of the image in pixels.
        class_ids: ids that exist.
        keypoints: number of keypoints, and of values for each: 2 (x, y) or 3 (with COCO's visibility).

    Raises:
        LabelLineError: the line has another number of values, an unknown class, or values that are no fractions.
    """
    values = _parse_values(line)
    class_id = _check_class(values[0], class_ids)
    coordinates = values[1:]
    if keypoints:
        expected = _BOX_VALUES + keypoints[0] * keypoints[1]
        if len(values) not in (_BOX_VALUES, expected):
            raise LabelLineError(
                f"{len(values)} values; with {keypoints[0]} keypoints (kpt_shape) it must be {expected}"
            )
    elif len(values) == _BOX_VALUES + 1:
        raise LabelLineError(
            "6 values: are these detections with scores? a box is class, x, y, width, height"
        )
    elif len(values) != _BOX_VALUES and (len(values) < 7 or len(values) % 2 == 0):
        raise LabelLineError(
            f"{len(values)} values; a box has 5 (class, x, y, width, height), a polygon 1 and two for each of at "
            "least three points; keypoints need kpt_shape in data.yaml"
        )
    if keypoints or len(values) == _BOX_VALUES:
        _check_fractions(coordinates[:4])
        annotation: dict[str, Any] = {"bbox": _box(coordinates[:4], size)}
        if keypoints and len(values) > _BOX_VALUES:
            annotation["keypoints"] = _keypoints(coordinates[4:], keypoints[1], size)
            annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
    else:
        _check_fractions(coordinates)
        annotation = _polygon(coordinates, size)
    return {"category_id": class_id, **annotation}


def format_box_line(
    class_id: int,
    box: Sequence[float],
    size: tuple[int, int],
    score: float | None = None,
    *,
    style: str = EXACT,
) -> str:
    """Return the line of a box [x, y, width, height] in pixels; `parse_label_line` reads it if it has no score.

    Args:
        class_id: YOLO's id of the class.
        box: the box, with its upper left corner.
        size: width and height of the image in pixels.
        score: score of a detection, in [0, 1]; None for none.
        style: Python's format of the numbers.
    """
    x, y, width, height = box
    values = [
        (x + width / 2) / size[0],
        (y + height / 2) / size[1],
        width / size[0],
        height / size[1],
    ]
    if score is not None:
        values.append(score)
    return " ".join([str(class_id), *(format(value, style) for value in values)])


def _parse_values(line: str) -> list[float]:
    try:
        values = [float(text) for text in line.split()]
    except ValueError as error:
        raise LabelLineError(
            str(error).replace("could not convert string to float:", "not a number:")
        ) from None
    if not all(map(math.isfinite, values)):
        raise LabelLineError("NaN or infinity")
    return values


def _check_class(value: float, class_ids: Container[int]) -> int:
    if value != int(value):
        raise LabelLineError(f"class {value:g} must be an integer")
    if int(value) not in class_ids:
        raise LabelLineError(f"class {value:g} has no name")
    return int(value)


def _check_fractions(coordinates: Sequence[float]) -> None:
    outside = [value for value in coordinates if not 1 - _MAX_FRACTION <= value <= _MAX_FRACTION]
    if outside:
        raise LabelLineError(f"{outside[0]:g} is not a fraction of the image; are these pixels?")


def _box(coordinates: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Return [x, y, width, height] in pixels, with the upper left corner."""
    x, y, width, height = coordinates
    x0, x1 = ((x + half) * size[0] for half in (-width / 2, width / 2))
    y0, y1 = ((y + half) * size[1] for half in (-height / 2, height / 2))
    return _from_corners(x0, y0, x1, y1)


def _from_corners(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [round_pixels(value) for value in (x0, y0, x1 - x0, y1 - y0)]


def _polygon(coordinates: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """Return a polygon in pixels and the box around it."""
    xs = [round_pixels(value * size[0]) for value in coordinates[0::2]]
    ys = [round_pixels(value * size[1]) for value in coordinates[1::2]]
    points = [value for point in zip(xs, ys, strict=True) for value in point]
    return {"bbox": _from_corners(min(xs), min(ys), max(xs), max(ys)), "segmentation": [points]}


def _keypoints(values: Sequence[float], dimensions: int, size: tuple[int, int]) -> list[float]:
    """Return COCO's [x, y, visibility, ...] in pixels; keypoints that are not labeled are zeros."""
    result: list[float] = []
    for i in range(0, len(values), dimensions):
        x, y = values[i : i + 2]
        # Without a visibility, a keypoint is labeled and visible unless it is outside or at the origin
        visibility = int(values[i + 2]) if dimensions == 3 else 2 * (min(x, y) >= 0 and max(x, y) > 0)
        if visibility not in (0, 1, 2):
            raise LabelLineError(f"visibility {values[i + 2]:g} of a keypoint must be 0, 1 or 2")
        point = (round_pixels(x * size[0]), round_pixels(y * size[1])) if visibility else (0.0, 0.0)
        result += [*point, visibility]
    return result
