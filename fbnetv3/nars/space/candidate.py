"""A candidate as evaluators see it: variable values, and the network and recipe that they form."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.arch import ArchDef
from fbnetv3.config.recipe import Recipe
from fbnetv3.nars.space.search_space import Space

_SHOWN_VALUES = 6  # at most, by `repr`
_VALUE_REPR = reprlib.Repr()
_VALUE_REPR.maxstring = _VALUE_REPR.maxother = 20
_VALUE_REPR.maxlist = _VALUE_REPR.maxtuple = _VALUE_REPR.maxdict = 3


class Candidate(Mapping[str, Any]):
    """A candidate handed to an evaluator; `candidate["lr"]` is the value of the variable lr.

    Inactive variables are not among the keys; `candidate.get("momentum")` returns None for them.

    Args:
        space: the search space.
        vector: the candidate, integers (variables,).
        number: number of its trial, from 0.
        seed: random seed for its evaluation.
        epochs: epochs to which the trial is trained now, counted from its start; default: `full_epochs`.
        full_epochs: epochs of a full evaluation. A trial that is paused is asked for fewer, and may be asked for more
            later.
        folder: folder for the evaluation's files, created on first use.
        attempt: number of earlier attempts that failed.
    """

    def __init__(
        self,
        space: Space,
        vector: np.ndarray,
        number: int = 0,
        seed: int = 0,
        epochs: int | None = None,
        full_epochs: int = 1,
        folder: Path | None = None,
        attempt: int = 0,
    ) -> None:
        self.space = space
        self.vector = np.asarray(vector)
        self.number = number
        self.seed = seed
        self.epochs = full_epochs if epochs is None else epochs
        self.full_epochs = full_epochs
        self.attempt = attempt
        self._values = space.decode(self.vector)
        self._folder = folder

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = [f"{name}={_format_value(value)}" for name, value in self._values.items()]
        if len(shown) > _SHOWN_VALUES:
            shown[_SHOWN_VALUES:] = ["..."]
        return f"Candidate({self.space.name} {self.number}: {', '.join(shown)})"

    @property
    def folder(self) -> Path | None:
        """Folder for the evaluation's files, including those of interrupted attempts and of earlier segments."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    @property
    def name(self) -> str:
        """Name of the candidate's network."""
        return f"{self.space.name}_{self.number:05d}"

    @cached_property
    def arch(self) -> ArchDef | None:
        """The candidate's network (see `Space.build_arch`), or None if the space has no architecture template."""
        if self.space.architecture is None:
            return None
        return self.space.build_arch(self.vector, self.name)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The candidate's recipe (see `Space.build_recipe`), or None if the space has no recipe template."""
        if self.space.recipe is None:
            return None
        return self.space.build_recipe(self.vector)

    def build(self) -> tuple[ArchDef | None, Recipe | None]:
        """Build network and recipe, and raise the errors of `arch` and `recipe`."""
        return self.arch, self.recipe


def _format_value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _VALUE_REPR.repr(value)
