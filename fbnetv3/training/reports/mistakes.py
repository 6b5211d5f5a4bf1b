"""The mistakes of which a classifier is most confident, as a table and a picture: wrong labels are often among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.data import Preprocessing
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.training.reports.image_grid import draw_image_grid, to_pixels
from fbnetv3.training.reports.predictions import Predictions
from fbnetv3.utils.files import write_csv
from fbnetv3.utils.text import shorten

MAX_IMAGES = 24
"""Images of the picture; the table has all mistakes."""
_CAPTION_LIMIT = 22  # characters that fit below an image


def rank_mistakes(predictions: Predictions) -> np.ndarray:
    """Return the positions of the wrong predictions, the most confident ones first."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-predictions.confidences[wrong], kind="stable")]


def write_mistakes(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write a CSV file with all mistakes, the most confident ones first."""
    rows = [
        (
            predictions.names[i],
            classes[predictions.targets[i]],
            classes[predictions.predicted[i]],
            round(float(predictions.confidences[i]), 6),
            round(float(predictions.target_probabilities[i]), 6),
        )
        for i in rank_mistakes(predictions)
    ]
    write_csv(path, ("image", "true", "predicted", "probability", "probability of true"), rows)


def draw_mistakes(
    predictions: Predictions, classes: Sequence[str], dataset: ImageDataset, preprocessing: Preprocessing
) -> Any:
    """Draw the most confident mistakes, as the network saw them: true class, predicted class and its probability."""
    ranked = rank_mistakes(predictions)
    images, captions = [], []
    for i in ranked[:MAX_IMAGES]:
        image, _ = dataset[int(predictions.indices[i])]
        images.append(to_pixels(preprocessing.crop_center(image)))
        probability = f"{100 * predictions.confidences[i]:.1f}% "
        predicted = shorten(classes[predictions.predicted[i]], _CAPTION_LIMIT - len(probability))
        captions.append((shorten(classes[predictions.targets[i]], _CAPTION_LIMIT), probability + predicted))
    count = f"{len(ranked):,} of {len(predictions):,} images"
    shown = "the most confident mistakes" if len(ranked) > MAX_IMAGES else "all mistakes"
    title = f"{shown} ({count} are wrong); green: true class, red: prediction"
    colors = [("tab:green", "tab:red")] * len(images)
    return draw_image_grid(
        images, captions, colors, title=title if len(ranked) else f"no mistakes ({count})"
    )
