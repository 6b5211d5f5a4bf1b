"""Cached teacher logits: the teacher sees each of a few fixed views per image only once (Sec. 4.2)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fbnetv3.errors import DataError, OutputError, UsageError
from fbnetv3.training.run_state.fingerprint import with_defaults
from fbnetv3.utils.files import build_output_error, make_folder, write_json
from fbnetv3.utils.nested_keys import first_difference

_SAVE_PERIOD = 100  # batches between two updates of the metadata
_START_AGAIN = "delete the folder and run tools/cache_teacher.py again"


class TeacherLogitCache:
    """A folder with a teacher's logits, float16 (views, images, classes), and the fingerprint that determines them.

    The logits of images that the teacher could not read are NaN.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps({**fingerprint, "shape": shape}))  # as read back from JSON
        self.shape = shape
        self.total = shape[0] * shape[1]  # logit vectors of the complete cache
        self.logits = folder / "logits.npy"
        self.metadata = folder / "metadata.json"

    def completed(self) -> int:
        """Return how many logit vectors are cached, in the order of views and images; 0 without a cache."""
        if not self.metadata.exists():
            return 0
        try:
            metadata = json.loads(self.metadata.read_text())
            fingerprint = metadata["fingerprint"]
            completed = int(metadata["completed"])
            difference = first_difference(with_defaults(fingerprint), self.fingerprint)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise UsageError(f"{self.metadata}: is corrupt; {_START_AGAIN}") from None
        if difference:
            problem = (
                f"holds logits made with {difference.key} {difference.saved}, not {difference.current}"
            )
            raise UsageError(f"{self.folder}: {problem}; choose another DISTILL.CACHE")
        return completed

    def open(self) -> np.ndarray:
        """Open the cache for reading. Raise a UsageError if it is incomplete or has a different fingerprint."""
        completed = self.completed()
        if completed < self.total:
            state = "is incomplete" if completed else "does not exist"
            raise UsageError(
                f"{self.folder}: {state}; create it with tools/cache_teacher.py and the same config"
            )
        return self._open_memmap("r")

    def write(self, batches: Iterable[tuple[Tensor, list[int]]], completed: int) -> None:
        """Append batches of logits (N, classes) and their positions to the `completed` logit vectors.

        Positions ascend; those left out are set to NaN. An interrupted write can be resumed.
        """
        make_folder(self.folder)
        try:
            if not completed:
                # Allocate the full size: a full disk is an error here, but SIGBUS in a memory map
                np.lib.format.open_memmap(self.logits, "w+", np.float16, self.shape).flush()
                if hasattr(os, "posix_fallocate"):
                    with self.logits.open("r+b") as f:
                        os.posix_fallocate(f.fileno(), 0, self.logits.stat().st_size)
            # Logits are written through a memory map; the metadata is updated every few batches
            file = self._open_memmap("r+")
            rows = file.reshape(-1, self.shape[-1])
            try:
                for number, (logits, positions) in enumerate(batches, 1):
                    rows[completed : positions[-1]] = np.nan
                    rows[positions] = logits.half().cpu().numpy()
                    completed = positions[-1] + 1
                    if number % _SAVE_PERIOD == 0:
                        self._save_metadata(file, completed)
                rows[completed:] = np.nan
                completed = self.total
            finally:  # keep the logits of an interrupted cache
                self._save_metadata(file, completed)
        except OutputError:
            raise
        except OSError as error:
            raise build_output_error(self.folder, error) from error

    def _open_memmap(self, mode: Literal["r", "r+"]) -> np.memmap:
        with contextlib.suppress(OSError, ValueError, EOFError):
            file = np.load(self.logits, mmap_mode=mode)
            if file.shape == self.shape and file.dtype == np.float16:
                return file
        raise UsageError(f"{self.logits}: is corrupt; {_START_AGAIN}")

    def _save_metadata(self, file: np.memmap, completed: int) -> None:
        # Logits must be on disk before the metadata counts them
        file.flush()
        write_json(self.metadata, {"fingerprint": self.fingerprint, "completed": completed}, indent=None)


class DistillationTarget:
    """Computes training targets: the teacher's cached probabilities, weighted by `alpha`, plus the smoothed label.

    Each process opens the cache itself.
    """

    def __init__(self, cache: TeacherLogitCache, alpha: float, label_smoothing: float) -> None:
        self.cache = cache
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self._logits: np.ndarray | None = cache.open()

    def __call__(self, view: int, index: int, class_index: int) -> Tensor:
        """Return class probabilities (classes,). Raise a DataError if the teacher could not read the image."""
        if self._logits is None:
            self._logits = self.cache.open()
        logits = self._logits[view, index]
        if np.isnan(logits).any():
            raise DataError(
                f"has no logits in {self.cache.folder}, because it could not be read when they were cached; "
                f"{_START_AGAIN}"
            )
        return blend_targets(logits, class_index, self.alpha, self.label_smoothing)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logits": None}


def blend_targets(
    teacher_logits: np.ndarray, class_index: int, alpha: float, label_smoothing: float
) -> Tensor:
    """Return `alpha` times the teacher's probabilities plus (1 - `alpha`) times the smoothed label, (classes,).

    Cross-entropy is linear in its target, so this gives the loss of `Distillation`.
    """
    probabilities = torch.from_numpy(teacher_logits.astype(np.float32)).softmax(0)
    label = torch.full_like(probabilities, label_smoothing / len(probabilities))
    label[class_index] += 1 - label_smoothing
    return alpha * probabilities + (1 - alpha) * label
