"""Classify many images, past those that cannot be read, and write the predictions as CSV, JSON and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fbnetv3.data.image_io import EncodedImage
from fbnetv3.deploy.input_sources import InputImage
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor, Prediction
from fbnetv3.errors import DataError
from fbnetv3.utils.files import atomic_write, make_folder, write_csv, write_json
from fbnetv3.utils.plotting import load_font

_PICTURE_SIDE = 640  # pixels
_FONT_SIZE = 18


@dataclass(frozen=True)
class ImagePredictions:
    """The most likely classes of an image, best first, or why it could not be read."""

    image: InputImage
    predictions: list[Prediction]
    error: str = ""


def classify_images(
    predictor: ClassifierPredictor, images: Iterable[InputImage], top: int = 5, batch_size: int = 32
) -> Iterator[ImagePredictions]:
    """Yield the predictions of each image in order; images that cannot be read have an error instead.

    Args:
        predictor: the classifier.
        images: images from `find_images`.
        top: number of classes for each image.
        batch_size: images per call of the network.

    Raises:
        WeightsError: logits are NaN or infinite; the message names the first image.
    """
    batch: list[tuple[InputImage, np.ndarray | str]] = []
    for image in images:
        batch.append((image, _prepare(predictor, image)))
        if len(batch) == batch_size:
            yield from _classify_batch(predictor, batch, top)
            batch = []
    yield from _classify_batch(predictor, batch, top)


def _prepare(predictor: ClassifierPredictor, image: InputImage) -> np.ndarray | str:
    """Return the network's input, float32 (1, channels, H, W), or the error."""
    try:
        return predictor.preprocess(image.read())
    except DataError as error:
        return str(error)


def _classify_batch(
    predictor: ClassifierPredictor, batch: Sequence[tuple[InputImage, np.ndarray | str]], top: int
) -> Iterator[ImagePredictions]:
    readable = [(image.name, pixels) for image, pixels in batch if not isinstance(pixels, str)]
    ranked: list[list[Prediction]] = []
    if readable:
        names, inputs = zip(*readable, strict=True)
        ranked = predictor.classify(np.concatenate(inputs), names, top)
    results = iter(ranked)
    for image, pixels in batch:
        if isinstance(pixels, str):
            yield ImagePredictions(image, [], pixels)
        else:
            yield ImagePredictions(image, next(results))


def write_predictions_csv(results: Sequence[ImagePredictions], path: Path) -> None:
    """Write a row per image: its name, the classes with their probabilities, best first, and the error if any."""
    count = max((len(result.predictions) for result in results), default=0)
    numbers = ["", *(f"_{number}" for number in range(2, count + 1))][:count]
    columns = [f"{column}{number}" for number in numbers for column in ("label", "probability")]
    rows = []
    for result in results:
        cells = [cell for p in result.predictions for cell in (p.label, f"{p.probability:.6f}")]
        rows.append([result.image.name, *cells, *[""] * (len(columns) - len(cells)), result.error])
    write_csv(path, ["image", *columns, "error"], rows)


def write_predictions_json(results: Sequence[ImagePredictions], path: Path) -> None:
    """Write a list with an object per image: "image", "predictions" and, for an image that was not read, "error"."""
    items: list[dict[str, Any]] = []
    for result in results:
        item: dict[str, Any] = {"image": result.image.name}
        item |= {"predictions": [asdict(p) for p in result.predictions]}
        items.append(item | ({"error": result.error} if result.error else {}))
    write_json(path, items)


class PictureWriter:
    """Writes images with their predictions below them into a folder, as JPEG."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        self._names: set[str] = set()

    def write(self, result: ImagePredictions) -> Path:
        """Write a picture named after the image, and return its path."""
        image = Image.fromarray(_render(result.image.read()))
        image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
        lines = [f"{p.label}  {100 * p.probability:.1f}%" for p in result.predictions]
        path = self.folder / self._unique_name(result.image.name)
        with atomic_write(path) as file:
            _add_caption(image, lines).save(file, format="JPEG", quality=90)
        return path

    def _unique_name(self, name: str) -> str:
        """Return a file name that no picture has: images of different folders may have the same name."""
        stem = Path(name).stem or "image"
        unique, number = stem, 1
        while unique in self._names:
            number += 1
            unique = f"{stem}_{number}"
        self._names.add(unique)
        return f"{unique}.jpg"


def _render(image: EncodedImage) -> np.ndarray:
    """Return the pixels as a viewer shows them, uint8 (H, W, 3)."""
    return image.decode(3).permute(1, 2, 0).numpy()


def _add_caption(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the image with lines of text below it."""
    font = load_font(_FONT_SIZE)
    line_height = _FONT_SIZE + 6
    width = max(image.width, *(int(font.getlength(line)) + 16 for line in lines))
    canvas = Image.new("RGB", (width, image.height + line_height * len(lines) + 8), "white")
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        color = "black" if number == 0 else "dimgray"
        draw.text((8, image.height + 4 + number * line_height), line, fill=color, font=font)
    return canvas
