"""A search as stored in its folder: trials, settings, recommendations, and the analysis of its result."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.errors import MissingPackageError, UsageError
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.predictor.accuracy_predictor import MIN_TRIALS, AccuracyPredictor
from fbnetv3.nars.settings.budgets import build_constraints
from fbnetv3.nars.settings.search_settings import MAXIMIZE, MINIMIZE, SearchSettings, parse_settings
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space, space_from_dict
from fbnetv3.nars.trials.history import stack_candidates
from fbnetv3.nars.trials.progress import comparison_epoch, count_epochs, rank_trials
from fbnetv3.nars.trials.trial_csv import write_rows
from fbnetv3.nars.trials.trial_store import (
    ANALYSIS_FILE,
    CONFIGURATION,
    CONTINUES,
    EPOCHS_PLANNED,
    FINAL,
    FINISHED,
    GIVEN,
    INITIAL,
    OUTPUTS,
    PROPOSED,
    SPACE,
    STOPPED_BY_FAILURES,
    Trial,
    TrialStore,
    TrialStoreError,
)
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.imports import find_callable, import_modules

_PHASES = (GIVEN, INITIAL, PROPOSED, FINAL)


@dataclass(frozen=True)
class SavedSearch:
    """A running or finished search.

    Attributes:
        folder: output folder.
        trials: all trials that have been proposed, by number.
        metadata: settings and state of the search, as its file holds them.
        analysis: what `save_analysis` has written; empty before.
    """

    folder: Path
    trials: tuple[Trial, ...] = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    analysis: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> SavedSearch:
        """Read the search in a folder.

        Raises:
            UserError: there is no search in the folder, or one of its files is corrupt.
        """
        folder = expand_path(folder)
        with contextlib.closing(TrialStore(folder)) as store:
            metadata = store.metadata()
            trials = tuple(store.trials())
        # The analysis is written after the search has finished
        file = folder / ANALYSIS_FILE
        analysis = _read_json(file) if file.exists() else {}
        return cls(folder, trials, metadata, analysis)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings by name, and the evaluator's name under "evaluator"; functions are given by their names."""
        return self.metadata.get(CONFIGURATION, {})

    @property
    def name(self) -> str:
        """Name of the space."""
        return str(self.metadata.get(SPACE, {}).get("name", self.folder.name))

    @property
    def state(self) -> str:
        """Whether the search has finished, in words."""
        if self.metadata.get(STOPPED_BY_FAILURES):
            return "stopped by failures"
        return "finished" if self.is_finished else "not finished"

    @property
    def is_finished(self) -> bool:
        """Whether all trials have ended and the recommendations have been written."""
        return bool(self.metadata.get(FINISHED))

    @property
    def is_paper(self) -> bool:
        """Whether Algorithm 1 was run, in rounds."""
        return bool(self.settings.get("paper"))

    @property
    def objectives(self) -> Mapping[str, str]:
        """Direction of each objective by its name, "value" if there is only one."""
        return self.settings.get("objectives") or {"value": self.settings.get("direction", MAXIMIZE)}

    @property
    def value_name(self) -> str:
        """What a trial's value is: the name of the first objective, or "value"."""
        return next(iter(self.objectives))

    @property
    def sign(self) -> float:
        """Factor that makes higher values of the first objective better."""
        return -1.0 if next(iter(self.objectives.values())) == MINIMIZE else 1.0

    @property
    def epochs(self) -> int:
        """Length of a full evaluation, in epochs."""
        longest = max((trial.epochs for trial in self.trials), default=1)
        return int(self.settings.get("epochs", longest))

    @property
    def comparison_epoch(self) -> int:
        """Epoch after which trials are compared: the last, or Algorithm 1's stopping epoch."""
        return comparison_epoch(self.trials, self.epochs)

    @property
    def continues(self) -> bool:
        """Whether evaluators continue trials from where they stopped."""
        return bool(self.metadata.get(CONTINUES, True))

    @property
    def epochs_done(self) -> int:
        """Epochs of all trials so far."""
        return count_epochs(self.trials, self.continues)

    @property
    def epochs_planned(self) -> int:
        """Epochs of all trials, as far as they are known beforehand."""
        return int(self.metadata.get(EPOCHS_PLANNED, 0))

    @cached_property
    def ranked(self) -> list[Trial]:
        """The trials that have reached the comparison epoch, best measured value first."""
        return rank_trials(self.trials, self.comparison_epoch, self.sign)

    @property
    def best(self) -> Trial:
        """The trial with the best measured value.

        Raises:
            UsageError: no trial has reached the comparison epoch yet.
        """
        if not self.ranked:
            raise UsageError(f"{self.folder}: no trials have finished yet; wait for the first one")
        return self.ranked[0]

    @property
    def groups(self) -> dict[str, list[Trial]]:
        """The trials by the phase in which they were proposed, or by round of Algorithm 1, in order."""
        if self.is_paper:
            names = {trial.number: f"round {trial.round + 1}" for trial in self.trials}
            order = list(dict.fromkeys(names.values()))
        else:
            names = {trial.number: trial.phase for trial in self.trials}
            order = [phase for phase in _PHASES if phase in names.values()]
        return {name: [trial for trial in self.trials if names[trial.number] == name] for name in order}

    @cached_property
    def recommendations(self) -> list[dict[str, Any]]:
        """The recommendations and the networks scaled from them, as their JSON files have them.

        To each, "files" adds the paths of its files relative to the search's folder.
        """
        outputs = []
        for name in self.metadata.get(OUTPUTS, ()):
            paths = {
                "provenance": f"recommendations/{name}.json",
                "config": f"recommendations/{name}.yaml",
                "arch": f"recommendations/archs/{name}.yaml",
                "recipe": f"recommendations/recipes/{name}.yaml",
            }
            files = {kind: path for kind, path in paths.items() if (self.folder / path).exists()}
            if "provenance" in files:
                outputs.append({**_read_json(self.folder / files["provenance"]), "files": files})
        return outputs

    @cached_property
    def space(self) -> Space:
        """The searched space."""
        if SPACE not in self.metadata:
            raise TrialStoreError(f"{self.folder}: does not say which space was searched")
        import_modules(self.settings.get("imports", ()), "imports")  # they may register blocks that it uses
        return space_from_dict(self.metadata[SPACE])

    @cached_property
    def constraints(self) -> Constraints:
        """Constraints of all candidates, without those whose functions cannot be imported by name."""
        return build_constraints(self._importable_settings, self.space)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Costs of the trials, (trials,) by name: those that `save_analysis` has written, or else can be computed."""
        if columns := self.analysis.get("columns"):
            numbers = [str(trial.number) for trial in self.trials]
            return {
                name: np.array([values.get(number, np.nan) for number in numbers])
                for name, values in columns.items()
            }
        if not self.trials or SPACE not in self.metadata:
            return {}
        names = self.constraints.column_names
        values = self.constraints.column_values(stack_candidates(self.trials), *names)
        return {name: column.astype(float) for name, column in values.items()}

    def predictor(self) -> AccuracyPredictor:
        """Train a predictor like that of the search on the trials so far.

        Columns and constraints that were given as functions are ignored where these cannot be imported by name.

        Raises:
            UserError: too few trials have reached the comparison epoch.
        """
        if len(self.ranked) < MIN_TRIALS:
            raise UsageError(f"{self.folder}: the predictor needs {MIN_TRIALS} finished trials")
        predictor, _ = SearchPlan(self.space, self._importable_settings).pretrain_predictor()
        values = [trial.value(self.comparison_epoch) for trial in self.ranked]
        predictor.fit(stack_candidates(self.ranked), np.array(values))
        return predictor

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each trial: what is known of it, its costs, and the values of its variables, by name.

        The value is that after the epoch after which trials are compared; "last_value" is that after the trial's last
        epoch. Variables with the name of another column get the suffix "_variable".
        """
        epoch = self.comparison_epoch
        costs = self.columns
        names = [variable.name for variable in self.space.variables] if SPACE in self.metadata else []
        rows = []
        for index, trial in enumerate(self.trials):
            row: dict[str, Any] = {
                "number": trial.number,
                "phase": trial.phase,
                "round": trial.round + 1 if self.is_paper else None,
                "budget": trial.budget,
                "status": trial.status,
                "epochs": len(trial.curve),
                "value": trial.value(epoch) if len(trial.curve) >= epoch else None,
                "last_value": trial.curve[-1] if trial.curve else None,
                "predicted": trial.predicted,
                "predicted_std": trial.predicted_std,
                "seconds": trial.seconds,
                "error": trial.error,
            }
            row |= trial.objectives
            row |= {name: float(values[index]) for name, values in costs.items()}
            row |= {
                f"{name}_variable" if name in row else name: trial.values.get(name)
                for name in names or trial.values
            }
            rows.append(row)
        return rows

    def to_dataframe(self) -> Any:
        """Return the `rows` as a pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError("to_dataframe needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def write_csv(self, file: str | os.PathLike) -> Path:
        """Write the `rows` as a CSV file; return its path."""
        rows = self.rows()
        return write_rows(file, list(rows[0]) if rows else [], rows)

    @cached_property
    def _importable_settings(self) -> SearchSettings:
        """The settings that matter to the predictor, without what needs functions that cannot be imported."""
        settings = dict(self.settings)
        for name in ("evaluator", "budgets", "scaled_networks", "first_candidates", "warm_start"):
            settings.pop(name, None)
        columns = settings.get("columns", {})
        missing = {name for name, function in columns.items() if not _is_importable(function)}
        for name in ("columns", "constraints"):
            values = settings.get(name, {})
            settings[name] = {key: value for key, value in values.items() if key not in missing}
        settings["feasible"] = [name for name in settings.get("feasible", ()) if _is_importable(name)]
        if not isinstance(labels := settings.get("pretraining_labels", "paper"), str):
            settings["pretraining_labels"] = [label for label in labels if label not in missing]
        return parse_settings(settings)


load = SavedSearch.read


def _is_importable(name: str) -> bool:
    try:
        find_callable(name, "function")
    except UsageError:
        return False
    return True


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        advice = "delete it and resume the search to write it again"
        raise TrialStoreError(f"{file}: is corrupt ({error}); {advice}") from None
