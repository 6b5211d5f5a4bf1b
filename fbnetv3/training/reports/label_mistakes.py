"""The wrong labels of which a network is most confident, where images have several: missed or predicted by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.data import Preprocessing
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.training.reports.image_grid import draw_image_grid, to_pixels
from fbnetv3.training.reports.predictions import LabelPredictions
from fbnetv3.utils.files import write_csv
from fbnetv3.utils.text import shorten

MAX_TILES = 24
"""Mistakes in the picture; the table has all of them."""
_CAPTION_LIMIT = 22  # characters that fit below an image


def rank_label_mistakes(predictions: LabelPredictions) -> list[tuple[int, int]]:
    """Return image and label of the wrong decisions, the most confident ones first."""
    wrong = np.argwhere(predictions.predicted != predictions.targets)
    probabilities = predictions.probabilities[wrong[:, 0], wrong[:, 1]]
    confidences = np.maximum(probabilities, 1 - probabilities)
    return [(int(image), int(label)) for image, label in wrong[np.argsort(-confidences, kind="stable")]]


def write_label_mistakes(path: Path, predictions: LabelPredictions, classes: Sequence[str]) -> None:
    """Write a CSV file with a row per wrong label, the most confident ones first."""
    rows = [
        (
            predictions.names[image],
            classes[label],
            "missed" if predictions.targets[image, label] else "false",
            round(float(predictions.probabilities[image, label]), 6),
        )
        for image, label in rank_label_mistakes(predictions)
    ]
    write_csv(path, ("image", "label", "mistake", "probability"), rows)


def draw_label_mistakes(
    predictions: LabelPredictions,
    classes: Sequence[str],
    dataset: ImageDataset,
    preprocessing: Preprocessing,
) -> Any:
    """Draw the images of the most confident mistakes, as the network saw them, with label and probability."""
    ranked = rank_label_mistakes(predictions)
    images, captions, colors = [], [], []
    for image, label in ranked[:MAX_TILES]:
        pixels, _ = dataset[int(predictions.indices[image])]
        images.append(to_pixels(preprocessing.crop_center(pixels)))
        probability = f"{100 * predictions.probabilities[image, label]:.1f}% "
        captions.append([probability + shorten(classes[label], _CAPTION_LIMIT - len(probability))])
        colors.append(["tab:green" if predictions.targets[image, label] else "tab:red"])
    count = f"{len(ranked):,} of {predictions.targets.size:,} labels"
    shown = "the most confident mistakes" if len(ranked) > MAX_TILES else "all mistakes"
    title = f"{shown} ({count} are wrong); green: missed, red: predicted by mistake"
    return draw_image_grid(
        images, captions, colors, title=title if len(ranked) else f"no mistakes ({count})"
    )
