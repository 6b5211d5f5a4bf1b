"""Figures: one style, saved atomically. matplotlib is imported on first use and no display is needed."""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from fbnetv3.utils.files import atomic_write, temporary_cache_dir
from fbnetv3.utils.logging_setup import quiet_logger, quiet_standard_error

# Fonts with characters that matplotlib's own lacks, in the order of preference; those that are installed are used
_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Unifont",
)


def new_figure(width: float = 7.2, height: float = 4.0, dpi: int = 120) -> Any:
    """Create a matplotlib figure outside pyplot; width and height are in inches."""
    prepare_matplotlib()
    # Fontconfig, a child process, reports folders that it cannot write to
    with quiet_logger("matplotlib", logging.ERROR), quiet_standard_error():
        import matplotlib.font_manager  # noqa: F401 (the first import lists the fonts)
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def prepare_matplotlib() -> None:
    """Let matplotlib cache its list of fonts in the temporary folder if the home folder is missing or read-only.

    Otherwise it warns, and builds the list in each process.
    """
    home = Path(os.path.expanduser("~"))
    if "MPLCONFIGDIR" not in os.environ and not (home.is_absolute() and os.access(home, os.W_OK)):
        os.environ["MPLCONFIGDIR"] = str(temporary_cache_dir() / "matplotlib")


@functools.cache
def load_font(size: int) -> Any:
    """Return matplotlib's font for drawing with Pillow, `size` pixels high; it has more letters than Pillow's."""
    prepare_matplotlib()
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def style_axes(axes: Any, **labels: Any) -> None:
    """Apply the project's style: light grid, no top and right spines. `labels` go to `Axes.set`."""
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend_above(axes: Any, num_entries: int) -> None:
    """Name the entries above the axes, where they hide nothing; a single one needs no name."""
    if num_entries > 1:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=num_entries)


def plain_log_ticks(*axes: Any) -> None:
    """Write 500 and 0.5 on logarithmic axes (x or y) rather than 5 x 10²."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())


def figure_png(figure: Any) -> bytes:
    """Render a figure as PNG."""
    image = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that no installed font has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(image, format="png")
    return image.getvalue()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file."""
    with atomic_write(path) as f:
        f.write(figure_png(figure))


@functools.cache
def text_style() -> dict[str, Any]:
    """Return the keywords of matplotlib texts that show names of any origin: no formulas, fonts for other scripts."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    fonts = ["DejaVu Sans", *(font for font in _FONTS if font in installed)]
    return {"family": fonts, "parse_math": False}
