"""The columns of a CSV file with boxes, by the names that people give them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_IMAGE = (
    "image",
    "filename",
    "file_name",
    "file",
    "path",
    "image_path",
    "img",
    "image_name",
    "image_id",
    "imageid",
)
_CLASS = (
    "class",
    "label",
    "name",
    "category",
    "class_name",
    "classname",
    "labelname",
    "category_name",
    "label_name",
)
_CORNERS = (
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_SIZES = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "w", "h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
)
_BBOX = ("bbox",)
_HEADERLESS = ("image", "x1", "y1", "x2", "y2", "class")
ONLY_CLASS = "object"
"""Name of the class in files without a column for it."""


@dataclass(frozen=True)
class BoxColumns:
    """Which columns hold the image, the box and the class."""

    image: int
    box: tuple[int, ...]  # four columns, or one with a list
    box_is_size: bool  # whether the last two values are width and height instead of the lower right corner
    class_name: int | None
    has_header: bool = True

    def parse(self, row: Sequence[str]) -> tuple[str, list[float] | None, str]:
        """Return a row's image, its box as [x, y, width, height] or None without one, and its class.

        Raises:
            ValueError: a cell is missing or not a number.
        """
        if len(row) <= max(self.image, *self.box, self.class_name or 0):
            raise ValueError(f"has {len(row)} cells, fewer than the others")
        image = row[self.image].strip()
        name = ONLY_CLASS if self.class_name is None else row[self.class_name].strip()
        cells = [row[column].strip() for column in self.box]
        if any(len(cell.splitlines()) > 1 for cell in (image, name, *cells)):
            raise ValueError("has a cell of several lines: is there a quotation mark too many?")
        if not image:
            raise ValueError("names no image")
        if not any(cells):
            return image, None, ""
        if not name:
            raise ValueError("has a box, but no class")
        first, second, third, fourth = _parse_box(cells)
        if not self.box_is_size:
            third, fourth = third - first, fourth - second
        return image, [first, second, third, fourth], name


def _parse_box(cells: Sequence[str]) -> list[float]:
    try:
        values = json.loads(cells[0]) if len(cells) == 1 else [float(cell) for cell in cells]
        values = [float(value) for value in values]
    except (ValueError, TypeError):
        raise ValueError(f"box {', '.join(cells)} must be four numbers") from None
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(f"box {', '.join(cells)} must be four finite numbers")
    return values


def find_box_columns(first_row: Sequence[str]) -> BoxColumns | None:
    """Return the columns of a file by its first row: a header, or "path,x1,y1,x2,y2,class" without one.

    None if these are not boxes, as in a CSV file with one class per image.
    """
    if _is_headerless(first_row):
        return BoxColumns(0, (1, 2, 3, 4), False, 5, has_header=False)
    columns = {name.strip().lower(): position for position, name in enumerate(first_row)}
    image = _first(columns, _IMAGE)
    if image is None:
        return None
    class_name = _first(columns, _CLASS)
    for choices, is_size in ((_CORNERS, False), (_SIZES, True), ((_BBOX,), True)):
        for names in choices:
            if all(name in columns for name in names):
                return BoxColumns(image, tuple(columns[name] for name in names), is_size, class_name)
    return None


def _is_headerless(row: Sequence[str]) -> bool:
    if len(row) != len(_HEADERLESS):
        return False
    coordinates = [cell.strip() for cell in row[1:5]]
    return bool(row[0].strip()) and (not any(coordinates) or all(map(_is_number, coordinates)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first(columns: Mapping[str, int], names: Sequence[str]) -> int | None:
    return next((columns[name] for name in names if name in columns), None)
