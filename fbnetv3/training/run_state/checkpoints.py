"""Checkpoints of a run: written whole or not at all, the newest few kept, the newest found again."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from fbnetv3.errors import WeightsError
from fbnetv3.modeling.weights import load_checkpoint_file
from fbnetv3.utils.files import atomic_write

# What a run needs to go on.
_STATE = frozenset(
    (
        "model",
        "model_ema",
        "ema_steps",
        "scaler",
        "optimizer",
        "epoch",
        "step",
        "metrics",
        "best",
        "damaged",
        "rng",
        "cuda_rng",
        "about",
    )
)
_NAME = re.compile(r"step_(\d+)\.pth")

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, in one folder, named by step.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = Path(folder), keep

    def all(self) -> list[Path]:
        """The checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(int(m[1]), path) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(self.all()), None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after so many steps, then remove all but the newest `keep` up to here.

        What claims to be of a later step goes too: this run went on from before it, since it is damaged.

        Raises:
            OutputError: it cannot be written; earlier checkpoints stay.
        """
        path = self.folder / f"step_{step:08d}.pth"
        save(path, state)
        later = [other for other in self.all() if other.name > path.name]
        earlier = [other for other in self.all() if other.name <= path.name]
        for old in later + earlier[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its path; a damaged one is warned of and passed over.

        Raises:
            WeightsError: there are checkpoints, and all are damaged.
        """
        damaged = None
        for path in reversed(self.all()):
            try:
                return path, self.load(path)
            except WeightsError as error:
                logger.warning("%s; trying the one before", error)
                damaged = error
        if damaged is not None:
            raise WeightsError(f"{self.folder}: no checkpoint is whole; the oldest: {damaged}")
        return None

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint of a run back.

        Raises:
            WeightsError: damaged, or not a checkpoint of a run.
        """
        state = load_checkpoint_file(path)
        if not isinstance(state, dict) or not state.keys() >= _STATE:
            raise WeightsError(f"{path}: is not a checkpoint of a training run")
        return state


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_write(path) as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # torch's zip writer hides a full disk behind one
            raise OSError(0, f"the disk may be full ({str(error).splitlines()[0]})") from None
