"""Boxes with names and scores on a picture."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from fbnetv3.utils.files import atomic_write

_JPEG = (".jpg", ".jpeg")
DRAWN_AS = (*_JPEG, ".png")
_JPEGS_LONGEST = 65_500
# Part of the picture's shorter side that a line is wide and a letter high, and what they are at least and at most.
_LINE, _LETTER = (1 / 200, 1, 8), (1 / 30, 10, 40)
_GOLDEN = 0.618034


def draw_detections(picture: np.ndarray, instances: Instances, names: Sequence[str]) -> Image.Image:
    """Draw boxes, and above each the name of its class and its score in per cent.

    Args:
        picture: uint8 RGB, (height, width, 3).
        instances: with `pred_boxes` in pixels of the picture, `scores` and `pred_classes`; the best are drawn on top.
        names: of the classes.

    Returns:
        The picture with the boxes.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line, letter = (round(max(low, min(high, part * min(image.size)))) for part, low, high in (_LINE, _LETTER))
    font = ImageFont.load_default(letter)
    order = instances.scores.argsort().tolist()
    boxes, scores = instances.pred_boxes.tensor.tolist(), instances.scores.tolist()
    for i in order:
        number = int(instances.pred_classes[i])
        colour, (x0, y0, x1, y1) = colour_of(number), boxes[i]
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=line)
        _label(draw, image.size, (x0, y0, y1), f"{names[number]} {100 * scores[i]:.0f} %", font, colour)
    return image


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    place: tuple[float, float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    """A name on a ground of the box's colour: above the box, or below it, or within, wherever there is room."""
    x, top, bottom = place
    left, up, right, down = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, down - up + 4
    y = next((y for y in (top - height, bottom, top) if 0 <= y <= size[1] - height), 0)
    x = max(0, min(x, size[0] - width))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + 2 - left, y + 2 - up), text, font=font, fill=(0, 0, 0))


def colour_of(number: int) -> tuple[int, int, int]:
    """A bright colour for a class, far from those of the classes before it."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.7, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all: as JPEG where the path says so and JPEG can, else as PNG.

    Raises:
        OutputError: it cannot be written.
    """
    as_jpeg = path.suffix.lower() in _JPEG and max(image.size) <= _JPEGS_LONGEST
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90) if as_jpeg else image.save(data, "PNG")
    with atomic_write(path) as f:
        f.write(data.getbuffer())
