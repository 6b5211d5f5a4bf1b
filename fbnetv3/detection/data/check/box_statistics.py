"""Sizes, shapes and numbers of boxes, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fbnetv3.data.check.findings import CheckTable
from fbnetv3.detection.data.annotations.annotation_summary import SIZE_LIMITS, SIZE_NAMES
from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.utils.plotting import add_legend_above, new_figure, plain_log_ticks, style_axes
from fbnetv3.utils.text import shorten

_MAX_CLASSES = 100
_BINS = 30


@dataclass(frozen=True)
class BoxFacts:
    """Facts about the boxes of a split, without crowds."""

    class_indices: np.ndarray  # (boxes,)
    image_indices: np.ndarray  # (boxes,)
    sizes: np.ndarray  # width and height in pixels, (boxes, 2)
    num_images: int  # with boxes or without

    @property
    def sides(self) -> np.ndarray:
        """Sides of squares of the same area, in pixels, (boxes,)."""
        return np.sqrt(self.sizes.prod(1))

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height, (boxes,)."""
        return self.sizes[:, 0] / self.sizes[:, 1]

    @property
    def boxes_per_image(self) -> np.ndarray:
        """Number of boxes of each image, (images,)."""
        return np.bincount(self.image_indices, minlength=self.num_images)


def box_facts(clean: CleanAnnotations) -> BoxFacts:
    """Return the facts about the boxes of clean annotations."""
    boxes = [annotation for annotation in clean.annotations if not annotation["iscrowd"]]
    return BoxFacts(
        np.array([box["category_id"] - 1 for box in boxes], int),
        np.array([box["image_id"] - 1 for box in boxes], int),
        np.array([box["bbox"][2:] for box in boxes], float).reshape(-1, 2),
        len(clean.images),
    )


def box_tables(splits: Mapping[str, CleanAnnotations]) -> list[CheckTable]:
    """Return a table of splits and one of classes."""
    if not splits:
        return []
    facts = {split: box_facts(clean) for split, clean in splits.items()}
    rows = []
    for split, clean in splits.items():
        boxes, summary = facts[split], clean.summary
        row = [split, f"{summary.boxes:,}", f"{summary.boxes / max(1, summary.images):.1f}"]
        row += [*_count_sizes(boxes.sides), _range_text(boxes.sides, "{:.0f}")]
        row += [_range_text(boxes.aspect_ratios, "{:.2f}")]
        counts = (summary.empty_images, summary.crowds, summary.clipped, summary.skipped)
        rows.append([*row, *(f"{count:,}" for count in counts)])
    headers = ["split", "boxes", "per image", *SIZE_NAMES, "side", "width / height"]
    headers += ["empty images", "crowds", "clipped", "left out"]
    note = (
        "side: of a square of the same area, in pixels; lowest, median and highest. "
        f"small: below {SIZE_LIMITS[0]}, large: from {SIZE_LIMITS[1]}"
    )
    return [CheckTable("Boxes", headers, rows, note, is_transposed=True), _class_table(splits, facts)]


def _class_table(splits: Mapping[str, CleanAnnotations], facts: Mapping[str, BoxFacts]) -> CheckTable:
    """Return the numbers of boxes of each class by split, and their sizes in all splits."""
    names = list(dict.fromkeys(name for clean in splits.values() for name in clean.classes))
    rows = []
    for name in names[:_MAX_CLASSES]:
        sides = {
            split: facts[split].sides[facts[split].class_indices == clean.classes.index(name)]
            for split, clean in splits.items()
            if name in clean.classes
        }
        counts = [f"{len(sides.get(split, ())):,}" for split in splits]
        together = np.concatenate(list(sides.values()))
        rows.append([shorten(name), *counts, *_count_sizes(together), _range_text(together, "{:.0f}")])
    note = f"the first {_MAX_CLASSES} of {len(names):,} classes" if len(names) > _MAX_CLASSES else ""
    return CheckTable("Boxes by class", ("class", *splits, *SIZE_NAMES, "side"), rows, note)


def _count_sizes(sides: np.ndarray) -> list[str]:
    """Return the numbers of small, medium and large boxes."""
    counts = np.bincount(np.digitize(sides, SIZE_LIMITS), minlength=len(SIZE_NAMES))
    return [f"{count:,}" for count in counts]


def _range_text(values: np.ndarray, style: str) -> str:
    if not len(values):
        return "-"
    texts = [style.format(value) for value in (values.min(), np.median(values), values.max())]
    return texts[0] if len(set(texts)) == 1 else " - ".join(texts)


def box_figures(splits: Mapping[str, CleanAnnotations]) -> list[tuple[str, Any]]:
    """Draw the distributions of sizes, shapes and numbers of boxes; nothing if there are no boxes."""
    facts = {split: box_facts(clean) for split, clean in splits.items()}
    facts = {split: boxes for split, boxes in facts.items() if len(boxes.sizes)}
    if not facts:
        return []
    counts = {split: boxes.boxes_per_image for split, boxes in facts.items()}
    count_bins = count_edges(max(int(values.max()) for values in counts.values()))
    sides = {split: boxes.sides for split, boxes in facts.items()}
    ratios = {split: boxes.aspect_ratios for split, boxes in facts.items()}
    return [
        (
            "Box sizes",
            _draw_histogram(sides, _log_bins(sides), "side of a square of the same area, pixels", "boxes"),
        ),
        ("Box shapes", _draw_histogram(ratios, _log_bins(ratios), "width / height", "boxes")),
        ("Boxes per image", _draw_histogram(counts, count_bins, "boxes", "images")),
    ]


def count_edges(most: int) -> np.ndarray:
    """Return the edges of the bins of a histogram of numbers from 0 to `most`."""
    width = max(1, most // _BINS)
    return np.arange(0, most + 1 + width, width) - 0.5


def _log_bins(values: Mapping[str, np.ndarray]) -> np.ndarray:
    lowest = min(v.min() for v in values.values())
    highest = max(v.max() for v in values.values())
    return np.geomspace(0.99 * lowest, 1.01 * highest, _BINS)


def _draw_histogram(
    values: Mapping[str, np.ndarray], bins: Sequence[float] | np.ndarray, x: str, noun: str
) -> Any:
    """Draw the shares of values by split; logarithmic bins get a logarithmic axis."""
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    for split, numbers in values.items():
        weights = np.full(len(numbers), 100 / len(numbers))
        axes.hist(numbers, bins=bins, weights=weights, histtype="step", lw=1.5, label=split)
    if bins[0] > 0:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
    style_axes(axes, xlabel=x, ylabel=f"% of the {noun}")
    add_legend_above(axes, len(values))
    return figure
