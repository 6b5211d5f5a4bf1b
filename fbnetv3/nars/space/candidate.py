"""A candidate as an evaluator sees it: the values of its variables, and the network and recipe that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.arch import ArchDef
from fbnetv3.config.recipe import Recipe
from fbnetv3.nars.space.search_space import Space


class Candidate(Mapping[str, Any]):
    """One candidate of a space, handed to an evaluator: `candidate["lr"]` is the value of the variable lr.

    Args:
        space: where it comes from.
        vector: its integers, (variables,).
        number: its trial's, from 0.
        seed: for whatever is random in its evaluation.
        full_epochs: how long a whole evaluation is; a trial that stops early is asked for fewer.
        folder: for its evaluation's files; it is made when it is asked for.
        attempt: from 0; others have failed before it.
    """

    def __init__(
        self,
        space: Space,
        vector: np.ndarray,
        number: int = 0,
        seed: int = 0,
        full_epochs: int = 1,
        folder: Path | None = None,
        attempt: int = 0,
    ) -> None:
        self.space, self.vector, self.number, self.seed = space, np.asarray(vector), number, seed
        self.full_epochs, self.attempt, self._folder = full_epochs, attempt, folder
        self.values_by_name = space.decode(self.vector)

    def __getitem__(self, name: str) -> Any:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        return f"Candidate({self.values_by_name})"

    @property
    def folder(self) -> Path | None:
        """Where its evaluation may leave files, and finds those of an attempt that was interrupted."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    @property
    def name(self) -> str:
        """Its network's name in files, unless the caller chooses another."""
        return f"{self.space.name}_{self.number:05d}"

    @cached_property
    def arch(self) -> ArchDef | None:
        """Its network; None where the space has no architectures.

        Raises:
            ArchError: the candidate makes no network.
        """
        return self.space.arch(self.vector, self.name) if self.space.architecture is not None else None

    @cached_property
    def recipe(self) -> Recipe | None:
        """Its recipe; None where the space has none.

        Raises:
            RecipeError: the candidate makes no recipe.
        """
        return self.space.make_recipe(self.vector) if self.space.recipe is not None else None
