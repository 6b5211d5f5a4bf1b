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

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_detections(picture: np.ndarray, instances: Instances, names: Sequence[str]) -> Image.Image:
    """Draw boxes labeled with class name and score in percent.

    Args:
        picture: uint8 (height, width, 3) in RGB.
        instances: `pred_boxes` in pixels, `scores` and `pred_classes`; the best are drawn last, on top.
        names: class names.

    Returns:
        A copy of the picture with the boxes.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    short_side = min(image.size)
    line_width = round(min(max(short_side / 200, 1), 8))
    font = ImageFont.load_default(round(min(max(short_side / 30, 10), 40)))
    boxes = instances.pred_boxes.tensor.tolist()
    scores = instances.scores.tolist()
    for i in instances.scores.argsort().tolist():
        class_index = int(instances.pred_classes[i])
        color = class_color(class_index)
        x0, y0, x1, y1 = boxes[i]
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=line_width)
        _draw_label(
            draw,
            image.size,
            (x0, y0, y1),
            f"{names[class_index]} {100 * scores[i]:.0f}%",
            font,
            color,
        )
    return image


def _draw_label(
    draw: ImageDraw.ImageDraw,
    image_size: tuple[int, int],
    box_edges: tuple[float, float, float],
    text: str,
    font: Font,
    color: Color,
) -> None:
    """Draw a label on the box's color: above the box, below it or inside it, where it fits into the image.

    Args:
        draw: the drawing context.
        image_size: width and height.
        box_edges: the left, top and bottom edge of the box.
        text: text of the label.
        font: font of the text.
        color: background color.
    """
    box_left, box_top, box_bottom = box_edges
    image_width, image_height = image_size
    text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
    width = text_right - text_left + 2 * _LABEL_PADDING
    height = text_bottom - text_top + 2 * _LABEL_PADDING
    candidates = (box_top - height, box_bottom, box_top)
    y = next((y for y in candidates if 0 <= y <= image_height - height), 0)
    x = max(0, min(box_left, image_width - width))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    draw.text(
        (x + _LABEL_PADDING - text_left, y + _LABEL_PADDING - text_top),
        text,
        font=font,
        fill=(0, 0, 0),
    )


def class_color(class_index: int) -> Color:
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
