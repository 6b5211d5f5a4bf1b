"""Metrics of each label where images have several, and their averages. Each label is one decision per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.training.reports.class_metrics import ClassMetrics
from fbnetv3.training.reports.predictions import LabelPredictions
from fbnetv3.utils.files import write_csv


@dataclass(frozen=True)
class LabelCounts:
    """Images by whether they have a label and whether it was predicted."""

    name: str
    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int


def count_label_decisions(predictions: LabelPredictions, classes: Sequence[str]) -> list[LabelCounts]:
    """Return the 2x2 confusion matrix of each label; one matrix over all labels is not defined."""
    from sklearn.metrics import confusion_matrix

    columns = zip(classes, predictions.targets.T, predictions.predicted.T, strict=True)
    return [
        LabelCounts(name, *confusion_matrix(truth, predicted, labels=[False, True]).ravel().tolist())
        for name, truth, predicted in columns
    ]


def compute_label_metrics(predictions: LabelPredictions, classes: Sequence[str]) -> list[ClassMetrics]:
    """Return the metrics of all labels, in their order, as scikit-learn computes them."""
    # Label by label: scikit-learn takes a single column for two classes
    metrics = []
    for i, name in enumerate(classes):
        truth, predicted = predictions.targets[:, i], predictions.predicted[:, i]
        scores = _decision_metrics(truth, predicted, predictions.probabilities[:, i])
        metrics.append(
            ClassMetrics(name, support=int(truth.sum()), predicted=int(predicted.sum()), **scores)
        )
    return metrics


def average_over_labels(
    predictions: LabelPredictions, metrics: Sequence[ClassMetrics]
) -> dict[str, float | None]:
    """Return the averages: "exact_match", and "micro_precision", "macro_precision" and so on.

    "exact_match" is the fraction of images of which all labels are right. The micro average takes all labels of all
    images together; the macro average is the mean over the labels that some image has, in which a precision without
    predictions counts as 0.
    """
    averages: dict[str, float | None] = {
        "exact_match": float((predictions.targets == predictions.predicted).all(1).mean())
    }
    pairs = _decision_metrics(
        predictions.targets.ravel(), predictions.predicted.ravel(), predictions.probabilities.ravel()
    )
    averages |= {f"micro_{name}": value for name, value in pairs.items()}
    present = [metric for metric in metrics if metric.support]
    for name in pairs:
        values = [getattr(metric, name) or 0.0 for metric in present]
        averages[f"macro_{name}"] = float(np.mean(values)) if values else None
    return averages


def _decision_metrics(
    truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    """Return precision, recall, F1 and average precision of one kind of decision; None where undefined."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=[True], zero_division=np.nan
    )
    values = {"precision": precision[0], "recall": recall[0], "f1": f1[0]}
    # scikit-learn warns and returns 0 without any positive
    values["average_precision"] = average_precision_score(truth, probabilities) if truth.any() else np.nan
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}


def write_label_counts(path: Path, counts: Sequence[LabelCounts]) -> None:
    """Write a CSV file with a row per label."""
    header = ("class", "true negatives", "false positives", "false negatives", "true positives")
    rows = [
        (row.name, row.true_negatives, row.false_positives, row.false_negatives, row.true_positives)
        for row in counts
    ]
    write_csv(path, header, rows)
