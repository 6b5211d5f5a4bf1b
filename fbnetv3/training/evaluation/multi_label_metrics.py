"""Metrics of classifiers whose images may have several labels: mean average precision and F1."""

from __future__ import annotations

import numpy as np


def multi_label_metrics(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return "map" and "f1" in percent.

    "map" is the mean over classes of the average precision; "f1" is the mean over classes of F1 at a probability of 0.5
    (macro F1). Classes that no image has are left out of both; without any label, both are 0.

    Args:
        probabilities: probability of each label, (images, classes).
        targets: 1 for the labels of an image, else 0, (images, classes).
    """
    from sklearn.metrics import average_precision_score, f1_score

    present = targets.any(axis=0)
    if not present.any():
        return {"map": 0.0, "f1": 0.0}
    truth, scores = targets[:, present].astype(int), probabilities[:, present]
    return {
        "map": 100 * float(average_precision_score(truth, scores, average="macro")),
        "f1": 100 * float(f1_score(truth, scores >= 0.5, average="macro", zero_division=0)),
    }
