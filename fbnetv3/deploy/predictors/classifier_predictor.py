"""One predictor of classes for every format: images in, labels with probabilities out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.data.transforms import INTERPOLATIONS
from fbnetv3.deploy.exported_folder import read_description
from fbnetv3.deploy.formats.export_formats import FORMATS
from fbnetv3.deploy.formats.runtimes import Runtime, open_runtime
from fbnetv3.deploy.input_images import AnyInput, is_several, opened
from fbnetv3.errors import ExportError, UsageError

_MOST_PIXELS = 16_384  # of a side


@dataclass(frozen=True)
class Prediction:
    """What a network takes an image for.

    Attributes:
        label: name of the class.
        probability: in [0, 1].
        index: number of the class.
    """

    label: str
    probability: float
    index: int


class Predictor:
    """Classifies images.

    Args:
        runtime: runs the network.
        preprocessing: how images become its input.
        classes: names of its outputs.
        name: of the network, for messages.
    """

    def __init__(self, runtime: Runtime, preprocessing: Preprocessing, classes: Sequence[str], name: str = "") -> None:
        self.runtime, self.preprocessing, self.classes, self.name = runtime, preprocessing, list(classes), name
        self._transform = preprocessing.transform()

    def __call__(
        self, images: AnyInput | Sequence[AnyInput], top: int = 5, batch_size: int = 32
    ) -> list[Prediction] | list[list[Prediction]]:
        """The likeliest classes, likeliest first.

        Args:
            images: one, or a list of them: a path, an array, uint8 (H, W) or (H, W, 3) in RGB, or a Pillow image.
            top: how many classes; all where there are fewer.
            batch_size: images at once.

        Returns:
            For an image its predictions; for a list of images a list of these.

        Raises:
            DataError: an image is missing, damaged, or no image; the text names it.
            UsageError: `top` or `batch_size` below 1.
        """
        if top < 1:
            raise UsageError(f"top {top}: is less than 1")
        found = [self._predictions(logits, top) for logits in self.logits(images, batch_size)]
        return found if is_several(images) else found[0]

    def _predictions(self, logits: np.ndarray, top: int) -> list[Prediction]:
        powers = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = powers / powers.sum()
        likeliest = np.argsort(-probabilities, kind="stable")[:top]
        return [Prediction(self.classes[i], float(probabilities[i]), int(i)) for i in likeliest]

    def logits(self, images: AnyInput | Sequence[AnyInput], batch_size: int = 32) -> np.ndarray:
        """What the network answers, float32 (N, classes), N being 1 for a single image. See `__call__`.

        Raises:
            UsageError: `batch_size` is less than 1.
            ExportError: the network's outputs are not as many as the names of classes.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: is less than 1")
        several: list[Any] = list(images) if is_several(images) else [images]
        found = [self.runtime.run(batch) for batch in self.batches(several, batch_size)]
        logits = np.concatenate(found) if found else np.empty((0, len(self.classes)), np.float32)
        if logits.shape != (len(several), len(self.classes)):
            raise ExportError(
                f"{self.name or 'the network'}: answers with {logits.shape} to {len(several)} images, "
                f"but has {len(self.classes)} class names"
            )
        return logits

    def batches(self, images: Sequence[AnyInput], batch_size: int = 32) -> Iterator[np.ndarray]:
        """Images as the network takes them, float32 (N, channels, H, W), so many at once."""
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            inputs = [self._transform(opened(image, f"images[{start + i}]")) for i, image in enumerate(part)]
            yield torch.stack(inputs).numpy()


def open_folder(folder: Path, format: str, name: str) -> Predictor:
    """The predictor of a classifier's folder whose manifest is known. Checks nothing."""
    preprocessing, classes = read_description(folder, preprocessing_from)
    return Predictor(open_runtime(format, folder / FORMATS[format].file), preprocessing, classes, name)


def fields_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """What preprocessing.json says."""
    return {
        **asdict(preprocessing),
        "channels": {1: "grey", 3: "RGB"}[preprocessing.channels],
        "steps": [
            f"resize the short side to {preprocessing.resize} pixels ({preprocessing.interpolation}, antialiased)",
            f"crop the centre, {preprocessing.resolution} x {preprocessing.resolution}",
            "divide by 255, subtract mean, divide by std, for each channel",
            "order: image, channel, row, column",
        ],
    }


def preprocessing_from(fields: Mapping[str, Any]) -> Preprocessing:
    """The reverse of `fields_of`."""
    found = Preprocessing(
        int(fields["resolution"]),
        int(fields["resize"]),
        tuple(map(float, fields["mean"])),
        tuple(map(float, fields["std"])),
        str(fields["interpolation"]),
    )
    if len(found.mean) != len(found.std) or len(found.mean) not in (1, 3) or found.interpolation not in INTERPOLATIONS:
        raise ValueError
    if not 1 <= found.resolution <= found.resize <= _MOST_PIXELS or not all(map(math.isfinite, found.mean + found.std)):
        raise ValueError
    if min(found.std) <= 0:
        raise ValueError
    return found
