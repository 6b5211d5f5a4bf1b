"""A search as stored in its folder: trials, metadata, and the analysis of its result."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbnetv3.nars.algorithm.trial_store import (
    ANALYSIS_FILE,
    DONE,
    STOPPING_EPOCH,
    Trial,
    TrialStore,
    TrialStoreError,
)


@dataclass(frozen=True)
class SearchRecord:
    """A running or finished search."""

    folder: Path
    trials: list[Trial]  # all proposed trials
    metadata: dict[str, Any]  # settings and state of the search
    analysis: dict[str, Any]  # what `save_analysis` has written; empty before

    @property
    def settings(self) -> dict[str, Any]:
        """The search's settings, by name."""
        return self.metadata.get("settings", {})

    @property
    def comparison_epoch(self) -> int:
        """The epoch at which accuracies are compared: the stopping epoch, once it is known."""
        return self.metadata.get(STOPPING_EPOCH) or min((trial.epochs for trial in self.trials), default=1)

    @property
    def rounds(self) -> list[list[Trial]]:
        """The trials of each round."""
        num_rounds = max((trial.round for trial in self.trials), default=-1) + 1
        return [[trial for trial in self.trials if trial.round == i] for i in range(num_rounds)]

    @property
    def completed_trials_by_round(self) -> list[list[Trial]]:
        """The completed trials of each round."""
        return [[trial for trial in trials if trial.status == DONE] for trials in self.rounds]


def read_search_record(folder: Path) -> SearchRecord:
    """Read a search from its folder."""
    with contextlib.closing(TrialStore(folder)) as store:
        trials = store.trials()
        metadata = store.metadata()
    # The analysis is written after the search has finished
    file = folder / ANALYSIS_FILE
    try:
        analysis = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        advice = "delete it and resume the search to write it again"
        raise TrialStoreError(f"{file}: is corrupt ({error}); {advice}") from None
    return SearchRecord(folder, trials, metadata, analysis)
