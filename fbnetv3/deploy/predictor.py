"""One predictor for every format: images in, labels with probabilities out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.deploy.bundle import check_files, read_description, read_manifest
from fbnetv3.deploy.formats import FORMATS
from fbnetv3.deploy.images import AnyInput, is_several, opened
from fbnetv3.deploy.runtimes import Runtime, open_runtime
from fbnetv3.errors import ExportError, UsageError


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
        """What the network answers, float32 (N, classes), N being 1 for a single image. See `__call__`."""
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: is less than 1")
        several = list(images) if is_several(images) else [images]
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


def load(folder: str | os.PathLike) -> Predictor:
    """The predictor of an exported folder, whatever its format, once every file's checksum is found right.

    A checksum tells damage, not malice: as any archive of torch.export, a .pt2 file may run code when it is opened.
    Load those only from people you trust; ONNX and ExecuTorch files hold none.

    Args:
        folder: what `tools/export_net.py` or `export_classifier` has made.

    Raises:
        ExportError: no exported folder, or a file is missing or damaged; the text names it.
        MissingPackageError: the format's runtime is not installed; the text says what to install.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return open_folder(folder, manifest.format, manifest.network)


def open_folder(folder: Path, format: str, name: str) -> Predictor:
    """The predictor of a folder whose manifest is known. Checks nothing."""
    preprocessing, classes = read_description(folder)
    return Predictor(open_runtime(format, folder / FORMATS[format].file), preprocessing, classes, name)
