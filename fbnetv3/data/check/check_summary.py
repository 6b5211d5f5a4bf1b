"""The result of a data check as text for the terminal, and as data for other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from fbnetv3.data.check.examination import ImageFacts, readable
from fbnetv3.data.check.findings import CheckTable, DataCheck, Finding, SplitContents
from fbnetv3.utils.text import first_few, shorten

MAX_EXAMPLES = 3
"""Images that the text names for each finding."""
MAX_CLASSES = 20
"""Classes in the text's table."""
_COUNTED = ("mode", "format", "orientation")


def summarize_split(contents: SplitContents) -> dict[str, Any]:
    """Return counts and ranges of a split: images, classes, sizes in pixels, modes, formats and orientations."""
    images = readable(contents.images)
    summary: dict[str, Any] = {
        "images": len(contents.images),
        "readable": len(images),
        "classes": contents.class_counts(),
        "skipped": contents.skipped,
    }
    for name in _COUNTED:
        counts = Counter(str(getattr(image, name)) for image in images)
        summary[f"{name}s"] = dict(counts.most_common())
    if images:
        sizes = np.array([image.size for image in images])
        ratios = sizes[:, 0] / sizes[:, 1]
        summary["width"] = _range(sizes[:, 0])
        summary["height"] = _range(sizes[:, 1])
        summary["aspect_ratio"] = [round(value, 3) for value in _range(ratios)]
        summary["brightness"] = [
            round(value, 1) for value in _range([image.brightness for image in images])
        ]
    return summary


def _range(values: Any) -> list[float]:
    """Return minimum, median and maximum."""
    return [np.asarray(value).item() for value in (np.min(values), np.median(values), np.max(values))]


def check_to_data(check: DataCheck) -> dict[str, Any]:
    """Return the result of a check as plain data, for JSON."""
    return {
        "source": check.source,
        "errors": check.has_errors,
        "splits": {split: summarize_split(contents) for split, contents in check.splits.items()},
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "message": finding.message,
                "images": [[_image_to_data(image) for image in group] for group in finding.groups],
            }
            for finding in check.findings
        ],
        "tables": {
            table.title: [dict(zip(table.headers, row, strict=True)) for row in table.rows]
            for table in check.tables
        },
    }


def _image_to_data(image: ImageFacts) -> dict[str, Any]:
    data = {"split": image.split, "name": image.name, "class": image.class_name or None}
    return {**data, "error": image.error} if image.error else data


def check_text(check: DataCheck) -> str:
    """Return the result of a check for the terminal: splits, classes, further tables and findings."""
    parts = [_split_table(check), _class_table(check), *map(_table_text, check.tables)]
    parts += [_finding_text(finding) for finding in check.findings]
    if not check.findings:
        parts.append("nothing to report")
    return "\n\n".join(part for part in parts if part)


def _split_table(check: DataCheck) -> str:
    rows = []
    for split, contents in check.splits.items():
        summary = summarize_split(contents)
        rows.append(
            [
                split,
                f"{summary['images']:,}",
                f"{sum(map(bool, summary['classes'].values())):,}",
                size_text(summary),
                count_text(summary["modes"]),
            ]
        )
    headers = ("split", "images", "classes", "width x height", "modes")
    table = tabulate(
        rows, headers=headers, colalign=("left", "right", "right", "left", "left"), disable_numparse=True
    )
    skipped = [
        f"{split}: {contents.skipped}" for split, contents in check.splits.items() if contents.skipped
    ]
    return "\n".join([table, *skipped])


def size_text(summary: dict[str, Any]) -> str:
    """Describe the sizes of a split's images: one size, or smallest to largest width and height."""
    if "width" not in summary:
        return "-"
    ranges = []
    for side in ("width", "height"):
        low, _, high = summary[side]
        ranges.append(f"{low:,}" if low == high else f"{low:,}-{high:,}")
    return " x ".join(ranges)


def count_text(counts: dict[str, int], limit: int = 4) -> str:
    """Describe how often each value occurs, such as "RGB 90, L 2"; one value needs no count."""
    if len(counts) < 2:
        return "".join(counts)
    return first_few([f"{value or 'none'} {count:,}" for value, count in counts.items()], limit)


def _class_table(check: DataCheck) -> str:
    """Return the numbers of images by class, the smallest classes first if there are many."""
    counts = {split: contents.class_counts() for split, contents in check.splits.items()}
    names = all_classes(check)
    ordered = sorted(names, key=lambda name: min(by_class.get(name, 0) for by_class in counts.values()))
    shown = names if len(names) <= MAX_CLASSES else ordered[:MAX_CLASSES]
    rows = [
        [shorten(name), *(f"{by_class.get(name, 0):,}" for by_class in counts.values())] for name in shown
    ]
    alignment = ("left", *len(counts) * ("right",))
    table = tabulate(rows, headers=("class", *counts), colalign=alignment, disable_numparse=True)
    if check.tables:  # also counts what the images contain
        table = f"Images by class\n{table}"
    if len(names) > len(shown):
        table += f"\nthe {len(shown)} smallest of {len(names):,} classes"
    return table


def _table_text(table: CheckTable) -> str:
    """Return a table with its title and note; of many rows, the first ones."""
    headers, rows = table.to_display()
    shown = rows[:MAX_CLASSES]
    alignment = ("left", *(len(headers) - 1) * ("right",))
    lines = [table.title, tabulate(shown, headers, colalign=alignment, disable_numparse=True)]
    if len(rows) > len(shown):
        lines.append(f"the first {len(shown)} of {len(rows):,} rows")
    return "\n".join([*lines, table.note] if table.note else lines)


def all_classes(check: DataCheck) -> list[str]:
    """Return the names of the classes of all splits, in their order."""
    return list(
        dict.fromkeys(name for contents in check.splits.values() for name in contents.dataset.classes)
    )


def _finding_text(finding: Finding) -> str:
    lines = [f"{finding.severity}: {finding.message}"]
    lines += [f"  {_group_text(group)}" for group in finding.groups[:MAX_EXAMPLES]]
    if len(finding.groups) > MAX_EXAMPLES:
        lines.append(f"  and {len(finding.groups) - MAX_EXAMPLES:,} more")
    return "\n".join(lines)


def _group_text(group: Sequence[ImageFacts]) -> str:
    names = " = ".join(shorten(image.name, 200) for image in group[:4])
    more = f" and {len(group) - 4} more" if len(group) > 4 else ""
    error = f" ({shorten(group[0].error, 160)})" if group[0].error else ""
    return f"{names}{more}{error}"
