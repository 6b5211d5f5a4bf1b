"""Classify images with a network in any runtime; the results are labels with probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.deploy.formats.export_format import Runtime
from fbnetv3.deploy.input_images import (
    ClassifierImage,
    image_name,
    is_batch,
    load_image,
    prepare_images,
)
from fbnetv3.errors import ExportError, UsageError, WeightsError
from fbnetv3.utils.checks import check_int, check_number

DEFAULT_TOP = 5
"""Classes to return for an image that has one."""
DEFAULT_THRESHOLD = 0.5
"""Probability from which a label is returned for images that have several."""


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to, with its probability in [0, 1]."""

    label: str
    probability: float
    class_index: int


@dataclass(frozen=True, eq=False)
class ClassifierPredictor:
    """A classifier with its preprocessing and the class names of its outputs."""

    runtime: Runtime
    preprocessing: Preprocessing
    classes: Sequence[str]
    name: str = "the network"
    multi_label: bool = False
    """Whether images have several labels: probabilities are then those of each class on its own (sigmoid)."""

    def __call__(
        self,
        images: ClassifierImage | Sequence[ClassifierImage],
        top: int | None = None,
        batch_size: int = 32,
        threshold: float | None = None,
        on_error: str = "raise",
    ) -> list[Prediction] | list[list[Prediction]] | list[list[Prediction] | None] | None:
        """Return the most likely classes, best first; if images have several labels, all that are likely enough.

        Args:
            images: one image or a list of images; each is a path, the content of a file as bytes or as a file object, a
                Pillow image, or a uint8 array (H, W), (H, W, 3) in RGB or (H, W, channels). Files and Pillow images are
                rendered as in training: see `pillow_to_tensor`. For a list, the result is a list of predictions for
                each image.
            top: number of classes to return for each image; default: 5, or with several labels per image no limit.
            batch_size: images per call of the network.
            threshold: with several labels per image, the probability in [0, 1] from which a label is returned; default:
                0.5. No label may reach it.
            on_error: what to do about an image that cannot be read: "raise" an error, or "skip" it with a warning; its
                result is then None.

        Raises:
            DataError: an image is missing or corrupt; the message names it. Not with `on_error="skip"`.
            UsageError: `top` or `batch_size` is less than 1, there is a threshold that is not in [0, 1] or not for
                several labels per image, or `on_error` is something else.
            ExportError: the number of class names is wrong.
            WeightsError: logits are NaN or infinite; the message names the first image.
        """
        self.check_limits(top, threshold)
        check_int(batch_size, "batch_size", 1)
        image_list: list[Any] = list(images) if is_batch(images) else [images]
        results: list[Any] = []
        for start in range(0, len(image_list), batch_size):
            part = image_list[start : start + batch_size]
            inputs = prepare_images(part, self._prepare, start, on_error)
            names = [image_name(part[i], start + i) for i in inputs]
            ranked = iter(
                self.classify(np.stack(list(inputs.values())), names, top, threshold) if inputs else ()
            )
            results += [next(ranked) if i in inputs else None for i in range(len(part))]
        return results if is_batch(images) else results[0]

    def check_limits(self, top: int | None, threshold: float | None) -> None:
        """Raise a UsageError for limits that `__call__` does not accept."""
        if top is not None:
            check_int(top, "top", 1)
        if threshold is None:
            return
        check_number(threshold, "threshold", 0, 1)
        if not self.multi_label:
            raise UsageError(f"threshold {threshold}: {self.name} has one class per image; use top")

    def preprocess(self, image: ClassifierImage) -> np.ndarray:
        """Return the network's input for one image, float32 (1, channels, H, W); see `__call__` for its errors."""
        return self._prepare(image, image_name(image, 0))[None]

    def _prepare(self, image: ClassifierImage, name: str) -> np.ndarray:
        """Return the network's input for one image, float32 (channels, H, W)."""
        loaded = load_image(image, name, self.preprocessing.channels)
        return self.preprocessing.normalize(self.preprocessing.crop_center(loaded)).numpy()

    def classify(
        self,
        inputs: np.ndarray,
        names: Sequence[str],
        top: int | None = None,
        threshold: float | None = None,
    ) -> list[list[Prediction]]:
        """Return the most likely classes for inputs from `preprocess`, (N, channels, H, W), with names for errors.

        For `top` and `threshold`, see `__call__`.
        """
        return self.rank_classes(self.run(inputs), names, top, threshold)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (N, classes), of inputs (N, channels, H, W)."""
        logits = self.runtime.run(inputs)
        if logits.shape != (len(inputs), len(self.classes)):
            raise ExportError(
                f"{self.name}: returns an output of shape {logits.shape} for {len(inputs)} images, "
                f"but has {len(self.classes)} class names"
            )
        return logits

    def rank_classes(
        self, logits: np.ndarray, names: Sequence[str], top: int | None, threshold: float | None
    ) -> list[list[Prediction]]:
        """Return the most likely classes for logits (N, classes), with the names of the images for errors."""
        finite = np.isfinite(logits).all(1)
        if not finite.all():
            raise WeightsError(
                f"{names[int(finite.argmin())]}: the logits of {self.name} are NaN or infinite: its weights have "
                "diverged, or the preprocessing is not that of its training"
            )
        if not self.multi_label:
            return [self._top_classes(row, top or DEFAULT_TOP, 0.0) for row in logits]
        threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        return [self._top_classes(row, top or len(self.classes), threshold) for row in logits]

    def _top_classes(self, logits: np.ndarray, top: int, threshold: float) -> list[Prediction]:
        values = torch.from_numpy(logits).double()
        values = values.sigmoid() if self.multi_label else values.softmax(0)
        probabilities, indices = values.sort(descending=True, stable=True)
        best = zip(probabilities[:top].tolist(), indices[:top].tolist(), strict=True)
        return [
            Prediction(self.classes[index], probability, index)
            for probability, index in best
            if probability >= threshold
        ]

    def logits(
        self, images: ClassifierImage | Sequence[ClassifierImage], batch_size: int = 32
    ) -> np.ndarray:
        """Return the network's logits, float32 (N, classes), with N = 1 for a single image; see `__call__`.

        They are not checked: some may be NaN or infinite.
        """
        check_int(batch_size, "batch_size", 1)
        image_list: list[Any] = list(images) if is_batch(images) else [images]
        outputs = [self.run(batch) for batch in self.batches(image_list, batch_size)]
        return np.concatenate(outputs) if outputs else np.empty((0, len(self.classes)), np.float32)

    def batches(self, images: Sequence[ClassifierImage], batch_size: int) -> Iterator[np.ndarray]:
        """Yield batches of preprocessed images, float32 (up to batch_size, channels, H, W)."""
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            yield np.stack(
                [self._prepare(image, image_name(image, start + i)) for i, image in enumerate(part)]
            )
