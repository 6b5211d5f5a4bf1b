"""Confusion matrix: which classes are taken for which, as a table and a figure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fbnetv3.training.reports.predictions import Predictions
from fbnetv3.utils.files import write_csv
from fbnetv3.utils.plotting import new_figure, style_axes, text_style
from fbnetv3.utils.text import shorten

MAX_NAMED_CLASSES = 30
"""With more classes, the figure shows no names at its axes, but the most frequent confusions next to them."""
_MAX_CELLS = 250  # per side; the figure has a few pixels for each
_MAX_PAIRS = 20


class Confusion(NamedTuple):
    """Two classes, and how many images of the one were taken for the other."""

    true: str
    predicted: str
    images: int
    fraction: float  # of the images of the true class


def compute_confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Return the number of images by true (row) and predicted class (column), as scikit-learn counts them."""
    from sklearn.metrics import confusion_matrix

    labels = np.arange(predictions.num_classes)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "A single label", UserWarning
        )  # also where there is only one class
        return confusion_matrix(predictions.targets, predictions.predicted, labels=labels)


def most_frequent_confusions(
    matrix: np.ndarray, classes: Sequence[str], count: int = _MAX_PAIRS
) -> list[Confusion]:
    """Return the pairs of classes with the most mistakes, in descending order."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = (divmod(int(flat), len(matrix)) for flat in order)
    return [
        Confusion(
            classes[row], classes[column], int(matrix[row, column]), matrix[row, column] / matrix[row].sum()
        )
        for row, column in pairs
        if mistakes[row, column]
    ]


def write_confusion_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write a CSV file with a row per true and a column per predicted class."""
    rows = ((name, *row) for name, row in zip(classes, matrix.tolist(), strict=True))
    write_csv(path, ("true \\ predicted", *classes), rows)


def draw_confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Any:
    """Draw the matrix, as fractions of the true class; with many classes, also the most frequent confusions."""
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    if len(classes) <= MAX_NAMED_CLASSES:
        return _draw_named_cells(matrix, fractions, classes)
    figure = new_figure(13, 6)
    axes, pair_axes = figure.subplots(1, 2, width_ratios=(6, 3))
    _draw_heatmap(figure, axes, fractions)
    _draw_pairs(pair_axes, most_frequent_confusions(matrix, classes))
    return figure


def _draw_named_cells(matrix: np.ndarray, fractions: np.ndarray, classes: Sequence[str]) -> Any:
    """Draw a matrix with names and counts."""
    count = len(classes)
    side = max(3.6, 0.36 * count + 2)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    names = [shorten(name, 20) for name in classes]
    rotation = 0 if sum(map(len, names)) < 12 * side - 30 else 90
    axes.set_xticks(range(count), names, rotation=rotation, **text_style())
    axes.set_yticks(range(count), names, **text_style())
    size = 9 if count <= 12 else 6
    for row, column in np.argwhere(matrix):
        color = "white" if fractions[row, column] > 0.55 else "black"
        axes.text(
            column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=color, fontsize=size
        )
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    return figure


def _draw_heatmap(figure: Any, axes: Any, fractions: np.ndarray) -> None:
    """Draw a matrix without names. Each cell may stand for several classes, and has the largest of their values."""
    count = len(fractions)
    step = -(-count // _MAX_CELLS)
    starts = np.arange(0, count, step)
    cells = np.maximum.reduceat(np.maximum.reduceat(fractions, starts, axis=0), starts, axis=1)
    extent = (-0.5, step * len(starts) - 0.5, step * len(starts) - 0.5, -0.5)
    # The square root shows rare confusions, too
    image = axes.imshow(
        cells,
        cmap="Blues",
        norm="linear" if count < 2 else _square_root_norm(),
        extent=extent,
        interpolation="nearest",
    )
    axes.set(xlabel="index of the predicted class", ylabel="index of the true class")
    label = "fraction of the true class"
    figure.colorbar(
        image,
        ax=axes,
        label=f"{label} (largest of {step} x {step} classes)" if step > 1 else label,
        shrink=0.8,
    )


def _square_root_norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _draw_pairs(axes: Any, pairs: Sequence[Confusion]) -> None:
    """Draw the most frequent confusions as bars."""
    positions = range(len(pairs))
    axes.barh(positions, [100 * pair.fraction for pair in pairs], color="tab:orange")
    labels = [f"{shorten(pair.true, 22)} → {shorten(pair.predicted, 22)}" for pair in pairs]
    axes.set_yticks(positions, labels, fontsize=8, **text_style())
    axes.invert_yaxis()
    for position, pair in enumerate(pairs):
        axes.text(100 * pair.fraction, position, f" {pair.images:,}", va="center", fontsize=8)
    title = "most frequent confusions (images)" if pairs else "no mistakes"
    style_axes(axes, title=title, xlabel="% of the true class")
    axes.margins(x=0.15)
