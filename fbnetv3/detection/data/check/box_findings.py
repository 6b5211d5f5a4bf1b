"""What a check finds about the boxes of a detection dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fbnetv3.data.check.examination import readable
from fbnetv3.data.check.findings import NOTE, WARNING, Finding, SplitContents
from fbnetv3.detection.data.check.detection_images import DetectionImages
from fbnetv3.utils.text import first_few

MIN_SIDE = 8
"""Pixels below which a box is tiny."""
MAX_ASPECT_RATIO = 8.0
FEW_BOXES = 20  # of a class, for training
_EQUAL_IOU = 0.95

_Box = Mapping[str, Any]


def find_box_problems(
    datasets: Mapping[str, DetectionImages], splits: Mapping[str, SplitContents]
) -> list[Finding]:
    """Return the findings about boxes: those clipped, left out, repeated, tiny or elongated, and images without any."""
    findings = [*_changes(datasets), *_classes(datasets)]
    images = [
        (image, datasets[split].boxes(image.index))
        for split, contents in splits.items()
        if datasets[split].clean is not None
        for image in readable(contents.images)
    ]
    for kind, severity, description, applies in _KINDS:
        if matches := [image for image, boxes in images if applies(boxes)]:
            message = f"{len(matches):,} {'image' if len(matches) == 1 else 'images'} {description}"
            findings.append(Finding(kind, severity, message, [[image] for image in matches]))
    return findings


def _changes(datasets: Mapping[str, DetectionImages]) -> Iterator[Finding]:
    """Yield what cleaning changed in each split."""
    for split, dataset in datasets.items():
        summary = dataset.clean.summary if dataset.clean else None
        if summary and (changes := summary.describe_changes()):
            is_lossy = summary.clipped or summary.left_out.total()
            kind = "corrected boxes" if is_lossy else "filled in"
            yield Finding(f"{kind} of {split}", WARNING if is_lossy else NOTE, f"{split}: {changes}")


def _classes(datasets: Mapping[str, DetectionImages]) -> Iterator[Finding]:
    """Yield classes with no boxes or few of them to train on."""
    name, dataset = next(iter(datasets.items()))
    if dataset.clean is None:
        return
    counts = Counter(box["category_id"] for box in dataset.clean.annotations if not box["iscrowd"])
    by_name = {name: counts[number] for number, name in enumerate(dataset.classes, 1)}
    if empty := [class_name for class_name, count in by_name.items() if not count]:
        yield Finding("classes without boxes", WARNING, f"no box in {name} of {first_few(empty, 5)}")
    if few := [class_name for class_name, count in by_name.items() if 0 < count < FEW_BOXES]:
        number = f"{len(few):,} {'class has' if len(few) == 1 else 'classes have'}"
        yield Finding(
            "few boxes", WARNING, f"{number} fewer than {FEW_BOXES} boxes in {name}: {first_few(few, 5)}"
        )


def _has_repeated_box(boxes: Sequence[_Box]) -> bool:
    """Return whether two boxes of a class are nearly equal."""
    by_class = defaultdict(list)
    for box in boxes:
        by_class[box["category_id"]].append(box["bbox"])
    return any(
        box_iou(first, second) > _EQUAL_IOU
        for same_class in by_class.values()
        for number, first in enumerate(same_class)
        for second in same_class[:number]
    )


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of two boxes [x, y, width, height]."""
    (x0, y0, w0, h0), (x1, y1, w1, h1) = first, second
    width = min(x0 + w0, x1 + w1) - max(x0, x1)
    height = min(y0 + h0, y1 + h1) - max(y0, y1)
    intersection = max(0.0, width) * max(0.0, height)
    return intersection / (w0 * h0 + w1 * h1 - intersection)


def _has_tiny_box(boxes: Sequence[_Box]) -> bool:
    return any(min(box["bbox"][2:]) < MIN_SIDE for box in boxes)


def _has_elongated_box(boxes: Sequence[_Box]) -> bool:
    return any(max(box["bbox"][2:]) > MAX_ASPECT_RATIO * min(box["bbox"][2:]) for box in boxes)


# Kind, severity, what is said of the images, and which they are by their boxes
_KINDS: Sequence[tuple[str, str, str, Callable[[Sequence[_Box]], bool]]] = (
    (
        "repeated boxes",
        WARNING,
        "with nearly equal boxes of the same class: remove the copies",
        _has_repeated_box,
    ),
    ("tiny boxes", NOTE, f"with boxes that have a side below {MIN_SIDE} pixels", _has_tiny_box),
    (
        "elongated boxes",
        NOTE,
        f"with boxes more than {MAX_ASPECT_RATIO:.0f} times as long as wide",
        _has_elongated_box,
    ),
    ("no boxes", NOTE, "without boxes: right if there is nothing to detect", lambda boxes: not boxes),
)
