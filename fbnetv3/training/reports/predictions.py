"""A classifier's prediction for each image of an evaluation, collected over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data import Batch
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Predictions:
    """The most likely class of each image, in the order of the dataset; all arrays have the shape (images,)."""

    num_classes: int
    names: list[str]  # of the images
    indices: np.ndarray  # of the images in the dataset
    targets: np.ndarray  # class indices
    predicted: np.ndarray  # class indices
    confidences: np.ndarray  # probability of the predicted class
    target_probabilities: np.ndarray  # probability of the true class

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right."""
        return self.predicted == self.targets


class PredictionRecorder:
    """Keeps the predictions of the last evaluation: a few numbers per image, whatever the number of classes."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget an earlier evaluation."""
        self._num_classes = 0
        self._names: list[str] = []
        self._indices: list[int] = []
        self._columns: list[Tensor] = []  # (4, images), on the device until the end

    def add(self, batch: Batch, logits: Tensor, targets: Tensor) -> None:
        """Add the logits (N, classes) of a batch and its class indices (N,); other targets are left out."""
        if targets.ndim != 1:  # several labels per image have no single true class
            return
        probabilities = logits.float().softmax(1)
        confidences, predicted = probabilities.max(1)
        target_probabilities = probabilities.gather(1, targets[:, None])[:, 0]
        self._columns.append(torch.stack([targets, predicted, confidences, target_probabilities]))
        self._names += batch.names
        self._indices += batch.indices
        self._num_classes = logits.shape[1]

    def gather(self, group: ProcessGroup = SINGLE_PROCESS) -> Predictions | None:
        """Return the predictions of all processes, which must call this together; None without an evaluation."""
        own = None
        if self._columns:
            columns = torch.cat(self._columns, dim=1).cpu().numpy()
            own = (self._num_classes, self._names, self._indices, columns)
        parts: list[Any] = [part for part in group.gather(own) if part is not None]
        if not parts:
            return None
        # A process saw every n-th image
        indices = np.concatenate([np.asarray(part[2], dtype=np.int64) for part in parts])
        names = [name for part in parts for name in part[1]]
        order = np.argsort(indices, kind="stable")
        columns = np.concatenate([part[3] for part in parts], axis=1)[:, order]
        targets, predicted = columns[:2].astype(np.int64)
        return Predictions(
            num_classes=parts[0][0],
            names=[names[i] for i in order],
            indices=indices[order],
            targets=targets,
            predicted=predicted,
            confidences=columns[2],
            target_probabilities=columns[3],
        )
