"""Metrics of classifiers whose images may have several labels: mean average precision and F1."""

from __future__ import annotations

import numpy as np

LABEL_THRESHOLD = 0.5
"""Probability from which an image is taken to have a label."""


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
    # Class by class: scikit-learn takes a single column for two classes, and averages over both
    columns = list(zip(targets[:, present].astype(int).T, probabilities[:, present].T, strict=True))
    precisions = [average_precision_score(truth, scores) for truth, scores in columns]
    f1_scores = [f1_score(truth, scores >= LABEL_THRESHOLD, zero_division=0) for truth, scores in columns]
    return {"map": 100 * float(np.mean(precisions)), "f1": 100 * float(np.mean(f1_scores))}
