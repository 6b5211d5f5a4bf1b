"""Numbered checkpoints of a run, of classifiers and of detectors: write, prune, find the newest complete one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_files import load_checkpoint_file
from fbnetv3.utils.files import atomic_write

State = dict[str, Any]

CLASSIFIER_KEYS = frozenset(
    (
        "model",
        "model_ema",
        "ema_steps",
        "scaler",
        "optimizer",
        "epoch",
        "step",
        "metrics",
        "best_top1",
        "corrupt_images",
        "rng",
        "cuda_rng",
        "metadata",
    )
)
"""Keys of a classifier's checkpoint: those that `Trainer.state_dict` returns, and the run's metadata."""

_NUMBERED = re.compile(r"(?P<prefix>\w*_)(?P<number>\d+)\.pth")

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a classifier's run, named by step.

    Args:
        folder: folder of the checkpoints.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """List the checkpoints, oldest first."""
        return numbered_checkpoints(self.folder, "step_")

    def save(self, step: int, state: State) -> Path:
        """Write the state after `step` steps, then prune older checkpoints."""
        path = self.folder / f"step_{step:08d}.pth"
        save_checkpoint(path, state)
        prune_checkpoints(path, self.keep)
        return path

    def load_newest(self) -> tuple[Path, State] | None:
        """Return the path and contents of the newest complete checkpoint; None if there are no checkpoints.

        Raises:
            WeightsError: all checkpoints are corrupt.
        """
        return load_newest(self.folder, reversed(self.paths()), self.load)

    def load(self, path: Path) -> State:
        """Read a checkpoint.

        Raises:
            WeightsError: the file is corrupt or not a checkpoint of a classifier's run.
        """
        state = load_checkpoint_file(path)
        if not isinstance(state, dict) or not state.keys() >= CLASSIFIER_KEYS:
            raise WeightsError(f"{path}: is not a checkpoint of a training run")
        return state


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint file atomically."""
    with atomic_write(path) as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # torch's zip writer reports a full disk as a RuntimeError
            raise OSError(0, f"the disk may be full ({str(error).splitlines()[0]})") from None


def numbered_checkpoints(folder: Path, prefix: str | None = None) -> list[Path]:
    """List checkpoints with a number in their name, such as step_00000100.pth, by number.

    Args:
        folder: folder to search; need not exist.
        prefix: prefix of the number in the name; by default, any.
    """
    numbered = []
    for path in folder.glob("*.pth") if folder.is_dir() else ():
        match = _NUMBERED.fullmatch(path.name)
        if match and prefix in (None, match["prefix"]):
            numbered.append((int(match["number"]), path))
    return [path for _, path in sorted(numbered)]


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints with the prefix of `newest`.

    Does nothing if `newest` has no number in its name. Checkpoints with a higher number are deleted too: they were
    corrupt, so the run resumed from an earlier one.
    """
    match = _NUMBERED.fullmatch(newest.name)
    if match is None:
        return
    # Everything after the newest, and all but `keep` up to it
    paths = numbered_checkpoints(newest.parent, match["prefix"])
    end = paths.index(newest) + 1
    for path in paths[: max(0, end - keep)] + paths[end:]:
        path.unlink(missing_ok=True)


def load_newest(folder: Path, newest_first: Iterable[Path], load: Callable[[Path], State]) -> tuple[Path, State] | None:
    """Return the path and contents of the first complete checkpoint; warn about corrupt ones and skip them.

    Args:
        folder: folder of the checkpoints, for the error message.
        newest_first: checkpoints to try.
        load: function that reads a checkpoint; raises a WeightsError if it is corrupt.

    Raises:
        WeightsError: there are checkpoints, and all are corrupt.
    """
    last_error = None
    for path in newest_first:
        try:
            return path, load(path)
        except WeightsError as error:
            logger.warning("%s; trying the previous checkpoint", error)
            last_error = error
    if last_error is not None:
        raise WeightsError(f"{folder}: all checkpoints are corrupt; the oldest: {last_error}")
    return None


def has_numbered_name(path: Path) -> bool:
    """Return whether the file is named like a numbered checkpoint."""
    return _NUMBERED.fullmatch(path.name) is not None
