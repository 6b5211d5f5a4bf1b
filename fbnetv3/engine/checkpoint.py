"""Checkpoints of a run: written whole or not at all, the newest few kept, the newest found again."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fbnetv3.errors import OutputError, WeightsError
from fbnetv3.modeling.weights import load_checkpoint_file

# What a run needs to go on.
_STATE = frozenset(
    ("model", "model_ema", "ema_steps", "scaler", "optimizer", "epoch", "step", "metrics", "rng", "cuda_rng", "about")
)
_NAME = re.compile(r"epoch_(\d+)\.pth")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` when it is whole, and leaves no trace if it fails.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


class Checkpoints:
    """The checkpoints of a run, in one folder.

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

    def save(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write the state after so many epochs, then remove what is older than the newest `keep`.

        Raises:
            OutputError: it cannot be written; earlier checkpoints stay.
        """
        path = self.folder / f"epoch_{epoch:04d}.pth"
        save(path, state)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

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
