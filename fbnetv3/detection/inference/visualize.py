"""Draw detections: boxes with class names and scores, masks and keypoints.

detectron2's Visualizer is not used: it cuts off labels at the image border, and is ten times slower.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.detection.inference.detected_image import track_ids
from fbnetv3.utils.files import atomic_write, make_folder
from fbnetv3.utils.plotting import load_font
from fbnetv3.utils.text import shorten

_JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (*_JPEG_SUFFIXES, ".png")
_JPEG_MAX_SIDE = 65_500
_MIN_FONT_SIZE = 9  # pixels
_MAX_NAME_LENGTH = 60  # characters
_MASK_OPACITY = 0.45
_MIN_KEYPOINT_SCORE = 0.05  # detectron2's

_Color = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


def draw_detections(
    picture: np.ndarray,
    instances: Instances,
    names: Sequence[str],
    skeleton: KeypointSkeleton | None = None,
) -> Image.Image:
    """Return a copy of a picture, uint8 (height, width, 3) in RGB, with boxes labeled like "dog #3: 92%".

    `instances` has `pred_boxes` in pixels, `pred_classes` and, except for annotations, `scores`. Masks, keypoints and
    tracks are drawn if there are any: `pred_masks` (N, H, W), `pred_keypoints` (N, K, 3), `track_ids`. `skeleton` says
    which keypoints lines connect. The objects with the highest scores are drawn last, on top. Colors are by track, or
    else by class.
    """
    has_scores = instances.has("scores")
    order = instances.scores.argsort().tolist() if has_scores else list(range(len(instances)))
    classes = instances.pred_classes.tolist()
    tracks = track_ids(instances)
    colors = [class_color(c if track is None else track) for c, track in zip(classes, tracks, strict=True)]
    if instances.has("pred_masks"):
        picture = _blend_masks(picture, instances.pred_masks.numpy(), colors, order)

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    short_side = min(image.size)
    line_width = round(min(max(short_side / 250, 1), 8))
    boxes = instances.pred_boxes.tensor.tolist()
    for i in order:
        x0, y0, x1, y1 = boxes[i]
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colors[i], width=line_width)
        if instances.has("pred_keypoints"):
            keypoints = instances.pred_keypoints[i].tolist()
            if skeleton is not None:
                _draw_lines(draw, keypoints, skeleton, colors[i], line_width)
            _draw_keypoints(draw, keypoints, colors[i], 1.5 * line_width)

    # Place the labels of the best objects first, and draw them last
    font_size = round(min(max(short_side / 32, 11), 64))
    placed: list[_Rectangle] = []
    labels = []
    for i in reversed(order):
        score = f": {100 * float(instances.scores[i]):.0f}%" if has_scores else ""
        suffix = score if tracks[i] is None else f" #{tracks[i]}{score}"
        name = shorten(names[classes[i]], _MAX_NAME_LENGTH)
        label = _fit_label(draw, name, suffix, font_size, image.size)
        if label is not None:
            position = _place_label(label, boxes[i], image.size, placed)
            placed.append((*position, position[0] + label.width, position[1] + label.height))
            labels.append((label, position, colors[i]))
    for label, position, color in reversed(labels):
        _draw_label(draw, label, position, color)
    return image


@dataclass(frozen=True)
class _Label:
    """A text in a size that fits into the image."""

    text: str
    font: Any
    padding: int  # pixels on each side of the text
    width: int
    height: int
    offset: tuple[int, int]  # from the corner of the label to where Pillow starts the text


def _fit_label(
    draw: ImageDraw.ImageDraw, name: str, suffix: str, font_size: int, image_size: tuple[int, int]
) -> _Label | None:
    """Return the label in the largest size in which the image is wide enough, with a shorter name if none is.

    None if there is not even space for the end of the text.
    """
    for size in range(font_size, _MIN_FONT_SIZE - 1, -1):
        label = _measure(draw, name + suffix, size)
        if label.width <= image_size[0] and label.height <= image_size[1]:
            return label
    texts = [f"{name[:length]}…{suffix}" for length in range(len(name) - 1, 0, -1)]
    for text in [*texts, suffix.removeprefix(": ")]:
        label = _measure(draw, text, _MIN_FONT_SIZE)
        if text and label.width <= image_size[0] and label.height <= image_size[1]:
            return label
    return None


def _measure(draw: ImageDraw.ImageDraw, text: str, font_size: int) -> _Label:
    font = load_font(font_size)
    left, top, right, bottom = (round(side) for side in draw.textbbox((0, 0), text, font=font))
    # All labels of a size have the same height, whatever their letters
    _, top, _, bottom = (round(side) for side in draw.textbbox((0, 0), f"{text}Ág", font=font))
    padding = max(1, font_size // 6)
    size = right - left + 2 * padding, bottom - top + 2 * padding
    return _Label(text, font, padding, *size, (padding - left, padding - top))


def _place_label(
    label: _Label, box: Sequence[float], image_size: tuple[int, int], placed: Sequence[_Rectangle]
) -> tuple[int, int]:
    """Return the upper left corner of a label: above, below or inside its box.

    The first place is taken that is inside the image and free of other labels, or else the first inside the image.
    """
    x0, y0, x1, y1 = box
    max_x, max_y = image_size[0] - label.width, image_size[1] - label.height
    places = [
        (x, y)
        for y in (y0 - label.height, y1, y0, y1 - label.height)
        for x in (x0, x1 - label.width)
        if 0 <= y <= max_y
    ] or [(x0, 0.0)]
    inside = [(round(min(max(x, 0), max_x)), min(round(y), max_y)) for x, y in places]
    for x, y in inside:
        if not any(
            x < right and left < x + label.width and y < bottom and top < y + label.height
            for left, top, right, bottom in placed
        ):
            return x, y
    return inside[0]


def _draw_label(draw: ImageDraw.ImageDraw, label: _Label, position: tuple[int, int], color: _Color) -> None:
    x, y = position
    draw.rectangle((x, y, x + label.width - 1, y + label.height - 1), fill=color)
    start = x + label.offset[0], y + label.offset[1]
    draw.text(start, label.text, font=label.font, fill=text_color(color))


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    keypoints: Sequence[Sequence[float]],
    skeleton: KeypointSkeleton,
    color: _Color,
    width: int,
) -> None:
    """Connect the points that the detector is sure of, with a rim that separates the lines from the object."""
    for line in skeleton.line_indices:
        ends = [keypoints[index] for index in line if index < len(keypoints)]
        if len(ends) == 2 and all(score > _MIN_KEYPOINT_SCORE for *_, score in ends):
            points = [(x, y) for x, y, _ in ends]
            draw.line(points, fill=text_color(color), width=width + 2)
            draw.line(points, fill=color, width=width)


def _draw_keypoints(
    draw: ImageDraw.ImageDraw, keypoints: Sequence[Sequence[float]], color: _Color, radius: float
) -> None:
    """Draw the points that the detector is sure of, with a rim that separates them from the object."""
    radius = max(radius, 1.5)
    for x, y, score in keypoints:
        if score > _MIN_KEYPOINT_SCORE:
            corners = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(corners, fill=color, outline=text_color(color))


def _blend_masks(
    picture: np.ndarray, masks: np.ndarray, colors: Sequence[_Color], order: Sequence[int]
) -> np.ndarray:
    """Return a copy of a picture in which masks (N, H, W), bool, are tinted."""
    picture = picture.copy()
    for i in order:
        mask = masks[i]
        tinted = (1 - _MASK_OPACITY) * picture[mask] + _MASK_OPACITY * np.array(colors[i])
        picture[mask] = tinted.round().astype(np.uint8)
    return picture


def class_color(class_index: int) -> _Color:
    """Return a bright color for a class, far from those of the preceding classes."""
    golden_ratio = 0.618034  # successive multiples, modulo 1, are spread evenly over the hues
    red, green, blue = colorsys.hsv_to_rgb(class_index * golden_ratio % 1, 0.7, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(background: _Color) -> _Color:
    """Return black or white, whichever has the higher contrast to a background."""
    contrast_to_black = (relative_luminance(background) + 0.05) / 0.05
    contrast_to_white = 1.05 / (relative_luminance(background) + 0.05)
    return (0, 0, 0) if contrast_to_black >= contrast_to_white else (255, 255, 255)


def relative_luminance(color: _Color) -> float:
    """Return the relative luminance of an sRGB color, in [0, 1], as WCAG 2 defines it."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture atomically: as JPEG if the suffix says so and the image is not too large, else as PNG."""
    make_folder(path.parent)
    is_jpeg = path.suffix.lower() in _JPEG_SUFFIXES and max(image.size) <= _JPEG_MAX_SIDE
    with atomic_write(path) as f:
        image.save(f, "JPEG" if is_jpeg else "PNG", quality=90)  # PNG has no quality and ignores it
