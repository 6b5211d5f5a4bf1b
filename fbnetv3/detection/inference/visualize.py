"""Draw detections: boxes with class names and scores.

detectron2's Visualizer is not used: it needs OpenCV, cuts off labels at the image border, and is ten times slower.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from fbnetv3.utils.files import atomic_write, make_folder

_JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (*_JPEG_SUFFIXES, ".png")
_JPEG_MAX_SIDE = 65_500
_LABEL_PADDING = 2  # pixels on each side of the text


def draw_detections(picture: np.ndarray, instances: Instances, names: Sequence[str]) -> Image.Image:
    """Return a copy of a picture, uint8 (height, width, 3) in RGB, with boxes labeled with class names and percentages.

    `instances` has `pred_boxes` in pixels, `pred_classes` and, except for annotations, `scores`. The boxes with the
    highest scores are drawn last, on top.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    short_side = min(image.size)
    line_width = round(min(max(short_side / 200, 1), 8))
    font = ImageFont.load_default(round(min(max(short_side / 30, 10), 40)))
    has_scores = instances.has("scores")
    for i in instances.scores.argsort().tolist() if has_scores else range(len(instances)):
        class_index = int(instances.pred_classes[i])
        color = class_color(class_index)
        x0, y0, x1, y1 = instances.pred_boxes.tensor[i].tolist()
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=line_width)
        # Put the label above, below or inside the box, the first of which that fits into the image
        label = names[class_index]
        if has_scores:
            label = f"{label} {100 * float(instances.scores[i]):.0f}%"
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        width = right - left + 2 * _LABEL_PADDING
        height = bottom - top + 2 * _LABEL_PADDING
        y = next((y for y in (y0 - height, y1, y0) if 0 <= y <= image.height - height), 0)
        x = max(0, min(x0, image.width - width))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        draw.text((x + _LABEL_PADDING - left, y + _LABEL_PADDING - top), label, font=font, fill=(0, 0, 0))
    return image


def class_color(class_index: int) -> tuple[int, int, int]:
    """Return a bright color for a class, far from those of the preceding classes."""
    golden_ratio = 0.618034  # successive multiples, modulo 1, are spread evenly over the hues
    red, green, blue = colorsys.hsv_to_rgb(class_index * golden_ratio % 1, 0.7, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture atomically: as JPEG if the suffix says so and the image is not too large, else as PNG."""
    make_folder(path.parent)
    is_jpeg = path.suffix.lower() in _JPEG_SUFFIXES and max(image.size) <= _JPEG_MAX_SIDE
    with atomic_write(path) as f:
        image.save(f, "JPEG" if is_jpeg else "PNG", quality=90)  # PNG has no quality and ignores it
