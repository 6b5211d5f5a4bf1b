"""A classifier's prediction for each image of an evaluation, collected over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data import Batch
from fbnetv3.data.batches.device_copies import HostTensors
from fbnetv3.training.evaluation.multi_label_metrics import LABEL_THRESHOLD
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


@dataclass(frozen=True)
class LabelPredictions:
    """The probabilities of all labels where images have several, in the order of the dataset."""

    names: list[str]  # of the images
    indices: np.ndarray  # of the images in the dataset, (images,)
    targets: np.ndarray  # whether an image has a label, (images, classes)
    probabilities: np.ndarray  # of each label on its own, (images, classes)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.targets.shape[1]

    @property
    def predicted(self) -> np.ndarray:
        """Whether a label was predicted, (images, classes)."""
        return self.probabilities >= LABEL_THRESHOLD


class PredictionRecorder:
    """Keeps the predictions of the last evaluation.

    With one class per image, these are a few numbers per image, whatever the number of classes.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget an earlier evaluation."""
        self._num_classes = 0
        self._names: list[str] = []
        self._indices: list[int] = []
        self._columns = HostTensors()  # (4, images); with several labels (2, images, classes)

    def add(self, batch: Batch, logits: Tensor, targets: Tensor) -> None:
        """Add the logits (N, classes) of a batch and its class indices (N,), or 1 for each label (N, classes)."""
        if targets.ndim == 2:
            self._columns.add(torch.stack([targets.float(), logits.float().sigmoid()]))
        else:
            probabilities = logits.float().softmax(1)
            confidences, predicted = probabilities.max(1)
            target_probabilities = probabilities.gather(1, targets[:, None])[:, 0]
            self._columns.add(torch.stack([targets, predicted, confidences, target_probabilities]))
        self._names += batch.names
        self._indices += map(int, batch.indices)
        self._num_classes = logits.shape[1]

    def gather(self, group: ProcessGroup = SINGLE_PROCESS) -> Predictions | LabelPredictions | None:
        """Return the predictions of all processes, which must call this together; None without an evaluation."""
        own = None
        if self._columns:
            columns = self._columns.concatenate(dim=1).numpy()
            own = (self._num_classes, self._names, self._indices, columns)
        parts: list[Any] = [part for part in group.gather(own) if part is not None]
        if not parts:
            return None
        # A process saw every n-th image
        indices = np.concatenate([np.asarray(part[2], dtype=np.int64) for part in parts])
        names = [name for part in parts for name in part[1]]
        order = np.argsort(indices, kind="stable")
        columns = np.concatenate([part[3] for part in parts], axis=1)[:, order]
        if columns.ndim == 3:
            return LabelPredictions([names[i] for i in order], indices[order], columns[0] > 0.5, columns[1])
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
