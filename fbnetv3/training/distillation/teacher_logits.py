"""A teacher's answers to every training image, on disk, for distillation from fixed views of the images (Sec. 4.2).

Where each image comes in a few fixed views instead of a new one in every epoch, the teacher need answer each only once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.utils.files import atomic_write


class AnswerFiles:
    """The logits of a teacher, float16 (views, images, classes), and what they are of.

    Args:
        folder: holds `logits.npy` and `about.json`.
        about: what decides about them; only a cache that is about the same is taken.
        shape: (views, images, classes).
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
        self.folder, self.about, self.shape = folder, json.loads(json.dumps({**about, "shape": shape})), shape
        self.logits, self.notes = folder / "logits.npy", folder / "about.json"

    def done(self) -> int:
        """How many answers there are, in the order of views and images; 0 where there is no cache yet.

        Raises:
            UsageError: the cache is about something else; the text says what differs.
        """
        if not self.notes.exists():
            return 0
        try:
            notes = json.loads(self.notes.read_text())
            found, done = notes["about"], int(notes["done"])
        except (OSError, ValueError, TypeError, KeyError):
            raise UsageError(f"{self.notes}: is not of a teacher's answers; remove its folder") from None
        for key, value in self.about.items():
            if found.get(key) != value:
                raise UsageError(
                    f"{self.folder}: holds answers for another {key}: {found.get(key)}, not {value}; "
                    "set another DISTILL.CACHE"
                )
        return done

    def open(self) -> np.ndarray:
        """The answers, for reading.

        Raises:
            UsageError: they are not there, not complete, or of something else.
        """
        if self.done() < self.shape[0] * self.shape[1]:
            state = "is incomplete" if self.done() else "is not there"
            raise UsageError(f"{self.folder}: {state}: make it with tools/cache_teacher.py and the same config")
        return self._map("r")

    def write(self, answers: Iterable[tuple[Tensor, list[int]]], done: int, save_every: int = 100) -> None:
        """Write answers, each with the place of its images among all; go on after those that are done.

        Args:
            answers: logits (N, classes) and the places of their images in the order of views and images.
            done: as `done()` says.
            save_every: how many of the answers to write between two notes of how far it is.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not done:
                np.lib.format.open_memmap(self.logits, "w+", np.float16, self.shape).flush()
                if hasattr(os, "posix_fallocate"):  # a full disk is to be known now, not by a signal later
                    with self.logits.open("r+b") as f:
                        os.posix_fallocate(f.fileno(), 0, self.logits.stat().st_size)
            file = self._map("r+")
            rows = file.reshape(-1, self.shape[-1])
            try:
                for number, (logits, places) in enumerate(answers, 1):
                    rows[places] = logits.half().cpu().numpy()
                    done = places[-1] + 1
                    if number % save_every == 0:
                        self._note(file, done)
                done = self.shape[0] * self.shape[1]
            finally:  # an interrupted cache goes on here
                self._note(file, done)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror or error}") from error

    def _map(self, mode: Literal["r", "r+"]) -> np.memmap:
        try:
            file = np.load(self.logits, mmap_mode=mode)
            if file.shape == self.shape and file.dtype == np.float16:
                return file
        except (OSError, ValueError, EOFError):
            pass
        raise UsageError(f"{self.logits}: is damaged; remove its folder, and let the teacher answer again")

    def _note(self, file: np.memmap, done: int) -> None:
        file.flush()
        with atomic_write(self.notes) as f:
            f.write(json.dumps({"about": self.about, "done": done}).encode())


class TargetWithAnswer:
    """Makes the target of a view of an image; each process opens the answers for itself.

    Args:
        files: the answers.
        share: weight of the teacher's.
        label_smoothing: of the labels' part.

    Raises:
        UsageError: as `AnswerFiles.open`.
    """

    def __init__(self, files: AnswerFiles, share: float, label_smoothing: float) -> None:
        self.files, self.share, self.label_smoothing = files, share, label_smoothing
        self._logits: np.ndarray | None = files.open()

    def __call__(self, view: int, index: int, target: int) -> Tensor:
        if self._logits is None:
            self._logits = self.files.open()
        return blended(self._logits[view, index], target, self.share, self.label_smoothing)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logits": None}


def blended(logits: np.ndarray, target: int, share: float, label_smoothing: float) -> Tensor:
    """The target that distillation comes to for one image: the teacher's answer and the label, (classes,).

    Cross-entropy is linear in its target, so that this gives the loss of `fbnetv3.training.losses.Distillation`.
    """
    answers = torch.from_numpy(logits.astype(np.float32)).softmax(0)
    labels = torch.full_like(answers, label_smoothing / len(answers))
    labels[target] += 1 - label_smoothing
    return share * answers + (1 - share) * labels
