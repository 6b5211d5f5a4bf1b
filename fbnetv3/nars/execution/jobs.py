"""What goes to the processes that evaluate candidates, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Job:
    """A candidate to evaluate.

    Attributes:
        number: its trial's.
        vector: integers (variables,).
        epochs: how far to evaluate it.
        full_epochs: how long a whole evaluation is.
        seed: for whatever is random in it.
        attempt: from 0; others have failed before it.
        folder: where it may leave files.
    """

    number: int
    vector: np.ndarray
    epochs: int
    full_epochs: int
    seed: int
    folder: Path | None
    attempt: int = 0


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to: a curve, or an error; and the seconds that it took."""

    number: int
    curve: tuple[float, ...] | None
    error: str | None
    seconds: float


class Executor(Protocol):
    """Evaluates jobs, several at a time.

    Attributes:
        slots: how many at a time.
    """

    slots: int

    def submit(self, job: Job) -> None:
        """Begin a job; there are never more than `slots`."""

    def wait(self, seconds: float) -> list[Outcome]:
        """What has ended; waits so long for the first one to end."""

    def close(self) -> None:
        """End what runs; it leaves nothing behind that runs."""
