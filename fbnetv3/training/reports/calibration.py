"""Calibration: whether a classifier that is 90% sure is right in 90% of the cases (Guo et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.training.reports.predictions import Predictions
from fbnetv3.utils.files import write_csv
from fbnetv3.utils.plotting import new_figure, style_axes

NUM_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Predictions grouped by the probability of the predicted class; arrays have a value per bin that is not empty."""

    edges: np.ndarray  # (bins + 1,), of all bins
    accuracy: np.ndarray  # fraction of right predictions
    confidence: np.ndarray  # mean probability of the predicted class
    counts: np.ndarray  # images

    @property
    def error(self) -> float:
        """Expected calibration error: the mean difference between accuracy and confidence, in [0, 1]."""
        differences = np.abs(self.accuracy - self.confidence)
        return float((self.counts * differences).sum() / self.counts.sum())

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy over all images, in [-1, 1]."""
        return float((self.counts * (self.confidence - self.accuracy)).sum() / self.counts.sum())


def compute_calibration(predictions: Predictions, num_bins: int = NUM_BINS) -> Calibration:
    """Group predictions into bins of equal width; accuracy and confidence of each are scikit-learn's."""
    from sklearn.calibration import calibration_curve

    # A probability may exceed 1 by a rounding error
    confidences = predictions.confidences.astype(np.float64).clip(0, 1)
    correct = predictions.correct.astype(int)
    accuracy, confidence = calibration_curve(correct, confidences, pos_label=1, n_bins=num_bins)
    edges = np.linspace(0, 1, num_bins + 1)
    # scikit-learn does not return the counts; the bins are its own
    counts = np.bincount(np.searchsorted(edges[1:-1], confidences), minlength=num_bins)
    return Calibration(edges, accuracy, confidence, counts[counts > 0])


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a CSV file with a row per bin that has images."""
    bins = np.searchsorted(calibration.edges[1:-1], calibration.confidence)
    rows = [
        (
            round(float(low), 6),
            round(float(high), 6),
            count,
            round(float(confidence), 6),
            round(float(accuracy), 6),
        )
        for low, high, count, confidence, accuracy in zip(
            calibration.edges[bins],
            calibration.edges[bins + 1],
            calibration.counts.tolist(),
            calibration.confidence,
            calibration.accuracy,
            strict=True,
        )
    ]
    write_csv(path, ("from", "to", "images", "confidence", "accuracy"), rows)


def draw_reliability_diagram(calibration: Calibration) -> Any:
    """Draw accuracy by confidence, above the number of images in each bin."""
    figure = new_figure(5, 5.4)
    axes, count_axes = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    width = calibration.edges[1] - calibration.edges[0]
    bins = np.searchsorted(calibration.edges[1:-1], calibration.confidence)
    centers = calibration.edges[bins] + width / 2
    bar = {"width": 0.92 * width, "color": "tab:blue"}
    # Above: bars that end below the line are too confident
    axes.bar(centers, calibration.accuracy, alpha=0.75, label="accuracy", **bar)
    axes.plot([0, 1], [0, 1], "--", color="0.4", lw=1, label="perfectly calibrated")
    axes.legend(framealpha=0.9, edgecolor="none")
    tendency = "too confident" if calibration.overconfidence > 0 else "too cautious"
    title = f"ECE {100 * calibration.error:.1f}%, on average {100 * abs(calibration.overconfidence):.1f}% {tendency}"
    style_axes(axes, title=title, ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    # Below: where the images are
    count_axes.bar(centers, calibration.counts, **bar)
    style_axes(count_axes, xlabel="confidence: probability of the predicted class", ylabel="images")
    return figure
