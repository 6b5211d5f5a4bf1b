"""Write the numbered checkpoints of a classifier's or detector's run, prune them, and find the newest complete one."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_contents import check_finite
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.utils.files import atomic_write

State = dict[str, Any]

# Keys that distinguish a classifier's checkpoint from other files; if other keys are missing, resuming names them
CLASSIFIER_KEYS = {"model", "optimizer", "epoch", "step", "metadata"}

_NUMBERED = re.compile(r"(?P<prefix>\w*_)(?P<number>\d+)\.pth")

logger = logging.getLogger(__name__)


@dataclass
class Checkpoints:
    """The checkpoints of a classifier's run, named by step, of which the newest `keep` are kept."""

    folder: Path
    keep: int = 3

    def paths(self) -> list[Path]:
        """List the checkpoints, oldest first."""
        return numbered_checkpoints(self.folder, "step_")

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` steps, then prune older checkpoints."""
        path = self.folder / f"step_{step:08d}.pth"
        save_checkpoint(path, state)
        prune_checkpoints(path, self.keep)

    def load_newest(self) -> tuple[Path, State] | None:
        """Return the path and contents of the newest complete checkpoint; None if there are no checkpoints."""
        return load_newest(self.folder, reversed(self.paths()), self.load)

    def load(self, path: Path) -> State:
        """Read a checkpoint. Raise a WeightsError if it is corrupt, not finite, or not of a classifier's run."""
        state = load_checkpoint_file(path)
        if not isinstance(state, dict) or not state.keys() >= CLASSIFIER_KEYS:
            raise WeightsError(f"{path}: is not a checkpoint of a training run")
        if isinstance(state["model"], Mapping):  # restoring reports anything else
            check_finite(state["model"], str(path))
        return state


def save_checkpoint(path: Path, state: State) -> None:
    """Write a checkpoint file atomically."""
    with atomic_write(path) as f:
        try:
            torch.save(state_on_host(state), f)
        except RuntimeError as error:  # torch's zip writer reports a full disk as a RuntimeError
            raise OSError(0, f"the disk may be full ({str(error).splitlines()[0]})") from None


def state_on_host(state: State) -> State:
    """Return a state whose tensors are not on a GPU; the others are shared.

    torch.save would wait for the GPU once per tensor. Here all copies are started, and waited for together.
    """
    devices: set[torch.device] = set()

    def copy_tensor(tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        devices.add(tensor.device)
        return tensor.to("cpu", non_blocking=True)

    copied = map_tensors(state, copy_tensor)
    for device in devices:
        torch.cuda.synchronize(device)
    return copied


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors in nested dicts, lists and tuples; state dicts keep their `_metadata`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        mapped = copy.copy(value)
        mapped.update({key: map_tensors(item, function) for key, item in value.items()})
        return mapped
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def numbered_checkpoints(folder: Path, prefix: str | None = None) -> list[Path]:
    """List checkpoints named by a prefix (default: any) and a number, such as step_00000100.pth, by number."""
    matches = [(_NUMBERED.fullmatch(path.name), path) for path in folder.glob("*.pth")]
    numbered = [
        (int(match["number"]), path)
        for match, path in matches
        if match and prefix in (None, match["prefix"])
    ]
    return [path for _, path in sorted(numbered)]


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints with the prefix of `newest`, or none if its name has no number.

    Checkpoints with a higher number are deleted too: they were corrupt, so the run resumed from an earlier one.
    """
    match = _NUMBERED.fullmatch(newest.name)
    if match is None:
        return
    # Delete everything after the newest, and all but `keep` up to it
    paths = numbered_checkpoints(newest.parent, match["prefix"])
    end = paths.index(newest) + 1
    for path in paths[: max(0, end - keep)] + paths[end:]:
        path.unlink(missing_ok=True)


def load_newest(
    folder: Path, newest_first: Iterable[Path], load: Callable[[Path], Any]
) -> tuple[Path, Any] | None:
    """Return the path and contents of the first complete checkpoint, and warn about corrupt ones before it.

    Return None without checkpoints. Raise a WeightsError if all are corrupt.
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
