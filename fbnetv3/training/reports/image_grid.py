"""A grid of images with captions, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fbnetv3.utils.plotting import new_figure, text_style

_LINE_INCHES = 0.15
_TITLE_CHARACTER_INCHES = 0.08  # at most, on average
_GAP = 0.06  # between two images, as a fraction of their side


def draw_image_grid(
    images: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
    colors: Sequence[Sequence[str]] | None = None,
    columns: int = 6,
    title: str = "",
    tile_inches: float = 1.5,
) -> Any:
    """Draw images in rows, each with lines of text below it.

    Args:
        images: square images, uint8 (side, side) or (side, side, 3), of equal size.
        captions: lines of text of each image, of equal number.
        colors: color of each line.
        columns: images per row.
        title: text above the grid.
        tile_inches: side of an image in the figure.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = max((len(caption) for caption in captions), default=0)
    caption_height = (lines * _LINE_INCHES + 0.08) / tile_inches
    # One pair of axes for all, in units of an image's side: subplots would take seconds
    width = columns * (1 + _GAP) + _GAP
    height = rows * (1 + _GAP + caption_height) + _GAP
    top = 0.35 if title else 0.0
    # Few images leave room for the title
    min_width = max(3.6, len(title) * _TITLE_CHARACTER_INCHES + 0.3)
    figure = new_figure(max(width * tile_inches, min_width), height * tile_inches + top)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1 - top / (height * tile_inches + top)))
    if title:
        figure.text(
            0.01, 1 - 0.1 / (height * tile_inches + top), title, va="top", fontsize=10, **text_style()
        )
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _GAP + (i % columns) * (1 + _GAP)
        upper = _GAP + (i // columns) * (1 + _GAP + caption_height)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, upper + 1, upper))
        for number, text in enumerate(caption):
            y = upper + 1.05 + number * _LINE_INCHES / tile_inches
            color = colors[i][number] if colors else "black"
            axes.text(left, y, text, va="top", fontsize=7, color=color, **text_style())
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_anchor("NW")
    axes.set_axis_off()
    return figure


def to_pixels(image: Any) -> np.ndarray:
    """Convert uint8 (channels, H, W) to an array for `draw_image_grid`."""
    pixels = np.asarray(image)
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
