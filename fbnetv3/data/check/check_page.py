"""The result of a data check as one HTML file with pictures inside."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fbnetv3.data.check.check_summary import all_classes, count_text, size_text, summarize_split
from fbnetv3.data.check.examination import ImageFacts, readable
from fbnetv3.data.check.findings import SEVERITIES, DataCheck, Finding
from fbnetv3.data.image_io import EncodedImage, pillow_to_tensor
from fbnetv3.utils.files import write_text
from fbnetv3.utils.plotting import (
    add_legend_above,
    figure_png,
    new_figure,
    plain_log_ticks,
    style_axes,
    text_style,
)
from fbnetv3.utils.text import evenly_spaced, shorten

_PAGE = Path(__file__).with_name("page")
_MAX_GROUPS = 12  # of a finding
_MAX_IN_GROUP = 4
_MAX_EXAMPLES = 24  # images of a split
_MAX_POINTS = 5000
_MAX_NAMED_CLASSES = 40
_MAX_LISTED_CLASSES = 1000
_THUMBNAIL = 112  # pixels
# Labels of the rows that describe the splits, which are columns so that long lists of modes fit on a phone
_SPLIT_ROWS = (
    ("images", "images"),
    ("unreadable", "unreadable"),
    ("classes", "classes"),
    ("width x height", "size"),
    ("modes", "modes"),
    ("formats", "formats"),
)


def write_check_page(check: DataCheck, path: Path) -> None:
    """Write the page; images are read again for their thumbnails, as the network sees their colors."""
    from jinja2 import Template  # slow to import

    # Values are escaped, because file and class names may contain any text
    template = Template((_PAGE / "check.html").read_text(), autoescape=True)
    counts = {split: contents.class_counts() for split, contents in check.splits.items()}
    names = all_classes(check)
    page = template.render(
        check=check,
        style=(_PAGE / "check.css").read_text(),
        severities={
            severity: sum(finding.severity == severity for finding in check.findings)
            for severity in SEVERITIES
        },
        split_rows=_SPLIT_ROWS,
        splits=[_describe_split(check, split) for split in check.splits],
        findings=[_describe_finding(check, finding) for finding in check.findings],
        figures=[
            (title, _to_uri(figure_png(figure)))
            for title, figure in (*_figures(check, names, counts), *check.figures)
        ],
        split_names=list(counts),
        classes=[[name, *(by_class.get(name, 0) for by_class in counts.values())] for name in names][
            :_MAX_LISTED_CLASSES
        ],
        num_classes=len(names),
        examples={split: _examples(check, split) for split in check.splits},
    )
    # Names of files may not be UTF-8
    write_text(path, page.encode("utf-8", "replace").decode())


def _describe_split(check: DataCheck, split: str) -> dict[str, Any]:
    summary = summarize_split(check.splits[split])
    texts = {
        "images": f"{summary['images']:,}",
        "unreadable": f"{summary['images'] - summary['readable']:,}",
        "classes": f"{sum(map(bool, summary['classes'].values())):,}",
        "size": size_text(summary),
        "modes": count_text(summary["modes"]),
        "formats": count_text(summary["formats"]) or "in memory",
    }
    # Lines may break after commas, and between width and height
    parts = {key: re.split(r"(?<=[,x]) ", text) for key, text in texts.items()}
    return {**parts, "name": split, "skipped": summary["skipped"]}


def _describe_finding(check: DataCheck, finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "message": finding.message,
        "groups": [
            [_describe_image(check, image) for image in group[:_MAX_IN_GROUP]]
            for group in finding.groups[:_MAX_GROUPS]
        ],
        "more": max(0, len(finding.groups) - _MAX_GROUPS),
    }


def _describe_image(check: DataCheck, image: ImageFacts) -> dict[str, Any]:
    width, height = image.size
    labels = image.class_name or ("class unknown" if image.error else "no labels")
    details = f"{image.split}, {labels}"
    return {
        "name": image.name,
        "details": details if image.error else f"{details}, {width} x {height}",
        "error": image.error,
        "is_large": _picture_side(check, image) > _THUMBNAIL,
        "uri": "" if image.error else _thumbnail(check, image),
    }


def _examples(check: DataCheck, split: str) -> list[dict[str, Any]]:
    """Return images spread over a split, which lists its classes one after the other."""
    images = readable(check.splits[split].images)
    return [_describe_image(check, image) for image in evenly_spaced(images, _MAX_EXAMPLES)]


def _picture_side(check: DataCheck, image: ImageFacts) -> int:
    """Return the size of an image's picture in pixels, which a dataset may set as `picture_side`."""
    return getattr(check.splits[image.split].dataset, "picture_side", _THUMBNAIL)


def _thumbnail(check: DataCheck, image: ImageFacts) -> str:
    """Return a small JPEG as a data URI; "" if the image has become unreadable.

    A dataset may draw on it: `decorate(picture, index)` is the optional method for that.
    """
    dataset = check.splits[image.split].dataset
    side = _picture_side(check, image)
    try:
        source, _ = dataset[image.index]
        if isinstance(source, EncodedImage):
            pixels = source.preview(downscale=min(image.size) / (2 * side))
        else:
            pixels = pillow_to_tensor(source, 3)
    except Exception:  # a user's dataset may raise anything
        return ""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if max(picture.size) < side:
        scale = side // max(picture.size)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    if hasattr(dataset, "decorate"):
        picture = dataset.decorate(picture, image.index)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return _to_uri(file.getvalue(), "jpeg")


def _to_uri(content: bytes, format: str = "png") -> str:
    return f"data:image/{format};base64,{base64.b64encode(content).decode()}"


def _figures(
    check: DataCheck, names: Sequence[str], counts: dict[str, dict[str, int]]
) -> list[tuple[str, Any]]:
    """Draw class balance, sizes and brightness."""
    figures = [("Images by class", _draw_balance(names, counts))]
    images = {split: readable(contents.images) for split, contents in check.splits.items()}
    if any(images.values()):
        figures.append(("Image sizes", _draw_sizes(images)))
        figures.append(("Brightness", _draw_brightness(images)))
    return figures


def _draw_balance(names: Sequence[str], counts: dict[str, dict[str, int]]) -> Any:
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    if len(names) > _MAX_NAMED_CLASSES:
        for split, by_class in counts.items():
            axes.plot(sorted((by_class.get(name, 0) for name in names), reverse=True), label=split)
        style_axes(axes, xlabel="classes, the largest first", ylabel="images", ylim=(0, None))
    else:
        width = 0.8 / len(counts)
        for number, (split, by_class) in enumerate(counts.items()):
            positions = [i + (number - (len(counts) - 1) / 2) * width for i in range(len(names))]
            axes.bar(positions, [by_class.get(name, 0) for name in names], width, label=split)
        labels = [shorten(name, 16) for name in names]
        rotation = 0 if sum(map(len, labels)) < 60 else 90
        axes.set_xticks(range(len(names)), labels, rotation=rotation, fontsize=8, **text_style())
        style_axes(axes, ylabel="images")
    add_legend_above(axes, len(counts))
    return figure


def _draw_sizes(images: dict[str, list[ImageFacts]]) -> Any:
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    for split, facts in images.items():
        sizes = [image.size for image in evenly_spaced(facts, _MAX_POINTS)]
        axes.plot(*zip(*sizes, strict=True), "o", ms=4, alpha=0.4, mew=0, label=split) if sizes else None
    axes.set_xscale("log")
    axes.set_yscale("log")
    style_axes(axes, xlabel="width in pixels", ylabel="height in pixels")
    plain_log_ticks(axes.xaxis, axes.yaxis)
    add_legend_above(axes, len(images))
    return figure


def _draw_brightness(images: dict[str, list[ImageFacts]]) -> Any:
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    for split, facts in images.items():
        levels = [image.brightness for image in facts]
        weights = [100 / len(facts)] * len(facts)
        axes.hist(levels, bins=32, range=(0, 255), weights=weights, histtype="step", lw=1.5, label=split)
    style_axes(axes, xlabel="mean of the pixels, 0 to 255", ylabel="% of the images", xlim=(0, 255))
    add_legend_above(axes, len(images))
    return figure
