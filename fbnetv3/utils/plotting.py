"""Figures: one style, saved atomically. matplotlib is imported on first use and no display is needed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fbnetv3.utils.files import atomic_write


def new_figure(width: float = 7.2, height: float = 4.0, dpi: int = 120) -> Any:
    """Create a matplotlib figure outside pyplot; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def style_axes(axes: Any, **labels: Any) -> None:
    """Apply the project's style: light grid, no top and right spines. `labels` go to `Axes.set`."""
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def figure_png(figure: Any) -> bytes:
    """Render a figure as PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file."""
    with atomic_write(path) as f:
        f.write(figure_png(figure))
