"""Precision, recall and F1 of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fbnetv3.training.reports.predictions import Predictions
from fbnetv3.utils.files import write_csv
from fbnetv3.utils.text import shorten

MAX_ROWS = 20
"""Rows of the table on the terminal."""
_HEADERS = {"precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "AP"}


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class, as fractions; None where they are undefined."""

    name: str
    precision: float | None  # None if the class was never predicted
    recall: float | None  # None if no image has the class
    f1: float | None  # None if neither
    support: int  # images that have the class
    predicted: int  # images that were predicted to have it
    average_precision: float | None = None  # with several labels per image; None if no image has the class


def compute_class_metrics(predictions: Predictions, classes: Sequence[str]) -> list[ClassMetrics]:
    """Return the metrics of all classes, in their order, as scikit-learn computes them."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=np.arange(len(classes)), zero_division=np.nan
    )
    predicted = np.bincount(predictions.predicted, minlength=len(classes))
    return [
        ClassMetrics(
            name,
            _defined(precision[i]),
            _defined(recall[i]),
            _defined(f1[i]),
            int(support[i]),
            int(predicted[i]),
        )
        for i, name in enumerate(classes)
    ]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def average_over_classes(metrics: Sequence[ClassMetrics]) -> dict[str, float]:
    """Return "balanced_accuracy" (the mean recall) and "macro_f1", over the classes that have images."""
    present = [metric for metric in metrics if metric.support]
    return {
        "balanced_accuracy": float(np.mean([metric.recall for metric in present])),
        "macro_f1": float(np.mean([metric.f1 for metric in present])),
    }


def write_class_metrics(path: Path, metrics: Sequence[ClassMetrics]) -> None:
    """Write a CSV file with a row per class. Only that of several labels per image has average precisions."""
    fractions = _fractions(metrics)
    rows = [
        (
            metric.name,
            *(_rounded(getattr(metric, name)) for name in fractions),
            metric.support,
            metric.predicted,
        )
        for metric in metrics
    ]
    write_csv(path, ("class", *fractions, "support", "predicted"), rows)


def _fractions(metrics: Sequence[ClassMetrics]) -> list[str]:
    """Return the names of the metrics that are fractions."""
    has_average = any(metric.average_precision is not None for metric in metrics)
    return ["precision", "recall", "f1", *(["average_precision"] if has_average else [])]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def class_table(metrics: Sequence[ClassMetrics], max_rows: int = MAX_ROWS) -> str:
    """Return a table for the terminal: the classes with the lowest F1 first, those without images left out."""
    present = sorted((metric for metric in metrics if metric.support), key=lambda metric: metric.f1 or 0.0)
    fractions = _fractions(metrics)
    rows = [
        (shorten(metric.name), *(_percent(getattr(metric, name)) for name in fractions), metric.support)
        for metric in present[:max_rows]
    ]
    table = tabulate(
        rows,
        headers=("class", *(_HEADERS[name] for name in fractions), "images"),
        colalign=("left", *(len(fractions) + 1) * ("right",)),
        disable_numparse=True,
    )
    notes = []
    if len(present) > max_rows:
        notes.append(f"the {max_rows} worst of {len(present):,} classes")
    if absent := len(metrics) - len(present):
        notes.append(f"{absent:,} {'class has' if absent == 1 else 'classes have'} no images")
    return "\n".join([table, *(["; ".join(notes)] if notes else [])])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
