"""Ask a search for candidates, evaluate them anywhere, and tell the results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.resume import start_or_resume
from fbnetv3.nars.algorithm.search_plan import build_plan
from fbnetv3.nars.algorithm.search_result import SearchResult, conclude_search
from fbnetv3.nars.algorithm.trial_runner import trial_seed
from fbnetv3.nars.evaluators.evaluator_registry import Measurements, parse_measurements
from fbnetv3.nars.predictor.accuracy_predictor import MIN_TRIALS
from fbnetv3.nars.proposals.search_model import SearchModel
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.history import visible_history
from fbnetv3.nars.trials.progress import rank_trials
from fbnetv3.nars.trials.trial_csv import find_listed, read_values, write_candidates
from fbnetv3.nars.trials.trial_store import GIVEN, RUNNING, WAITING, Proposal, Segment, Trial, TrialStore
from fbnetv3.utils.files import FolderLock, expand_path

_LOCK_SECONDS = 120.0  # how long to wait for other processes that ask or tell


class Search:
    """A search that proposes candidates and is told their values; `search` uses the same engine.

    Several processes may ask and tell in one folder at the same time. Unlike those of `search`, proposals depend on
    which results are known when they are made.

    Args:
        space: a `Space`, or its YAML file.
        folder: folder for trials, recommendations and report. A search that it contains is continued.
        settings: settings of the search; if omitted, they are built from `keywords`. Those of executors are ignored.
        continues: whether trials are continued from where they stopped when more epochs are asked for; otherwise, they
            are counted from the first epoch again.
        keywords: fields of `SearchSettings`, instead of `settings`.

    Raises:
        UserError: invalid settings, constraints that no candidate meets, or trials of a different search.
    """

    def __init__(
        self,
        space: Space | str | os.PathLike,
        folder: str | os.PathLike,
        settings: SearchSettings | None = None,
        *,
        continues: bool = False,
        **keywords: Any,
    ) -> None:
        self._plan = build_plan(space, settings, keywords)
        self._proposer = self._plan.build_proposer(continues)
        self.folder = expand_path(folder).resolve()
        with self._open_store() as store:
            # Trials that other processes were asked for stay theirs
            start_or_resume(self._plan, store, None, continues, requeue=False)

    def __repr__(self) -> str:
        return f"Search({self.space.name} in {self.folder})"

    @property
    def space(self) -> Space:
        """The searched space."""
        return self._plan.space

    @property
    def _objectives(self) -> tuple[str, ...]:
        return tuple(self._plan.settings.objectives)

    @property
    def trials(self) -> list[Trial]:
        """All trials, by number."""
        with self._open_store() as store:
            return store.trials()

    @property
    def best(self) -> Trial:
        """The trial with the best measured value after the last epoch."""
        ranked = rank_trials(self.trials, self._plan.settings.epochs, self._plan.settings.sign)
        if not ranked:
            raise UsageError(f"{self.folder}: no trial has reached the last epoch yet")
        return ranked[0]

    @property
    def incumbent(self) -> Trial:
        """The completed trial with the best posterior mean: its measured value with the noise averaged out."""
        history = visible_history(self.trials, self._plan.settings.epochs)
        if len(history.completed) < MIN_TRIALS:
            return self.best
        model = SearchModel(self.space, history, self._plan.settings.sign, self._plan.warm_start)
        return history.completed[int(np.argmax(model.completed_means))]

    def ask(self, count: int = 1) -> list[Candidate]:
        """Return up to `count` candidates to evaluate, each to its `epochs`; none if the search is over.

        With `paper=True`, there are also none while the trials of a round are being evaluated.
        """
        with self._open_store() as store:
            segments = [segment for segment in store.segments() if segment.status == WAITING]
            while len(segments) < count and (added := self._propose(store)):
                segments += added
            return [self._hand_out(store, segment) for segment in segments[:count]]

    def tell(
        self,
        candidate: Candidate | Mapping[str, Any],
        curve: Sequence[float] | float | Mapping[str, Any],
    ) -> Trial:
        """Record the value of a candidate after each epoch, and return its trial.

        Args:
            candidate: a candidate from `ask`, or values of your own, by variable.
            curve: one value for each epoch up to the candidate's `epochs`, or up to any epoch of an own candidate; or a
                number, if there is only one epoch. With several objectives, a mapping from the name of each to its
                values.
        """
        with self._open_store() as store:
            if isinstance(candidate, Candidate):
                segment = self._asked_segment(store, candidate)
                measured = self._parse(curve, segment.epochs)
            else:
                # Before the trial is added, which would wait to be evaluated otherwise
                measured = self._parse(curve, self._count_epochs(curve))
                segment = self._add_given(store, candidate, len(measured.curve))
            store.complete(segment.number, measured.curve, 0.0, measured.objectives)
            return store.trial(segment.trial)

    def tell_failure(self, candidate: Candidate, error: str) -> Trial:
        """Record that the evaluation of a candidate from `ask` failed; it is not proposed again."""
        with self._open_store() as store:
            segment = self._asked_segment(store, candidate)
            store.fail(segment.number, error, 0.0, retry=False)
            return store.trial(segment.trial)

    def ask_csv(self, file: str | os.PathLike, count: int) -> int:
        """Write up to `count` candidates to a CSV file with an empty column "value"; return their number.

        With several objectives, there is an empty column for each.

        Raises:
            UsageError: the file has candidates whose values were not told, and would be overwritten.
        """
        running = {trial.number for trial in self.trials if trial.status == RUNNING}
        if lost := find_listed(file) & running:
            raise UsageError(
                f"{file}: has candidates whose values are not known yet, such as trial {min(lost)}; tell them "
                "first, or choose a different file"
            )
        # Before candidates are handed out, which would be lost if the file could not be written
        write_candidates(file, self.space, (), self._objectives)
        candidates = self.ask(count)
        write_candidates(file, self.space, candidates, self._objectives)
        return len(candidates)

    def tell_csv(self, file: str | os.PathLike) -> int:
        """Record the values in a file that `ask_csv` has written; return the number of trials that are new.

        A value is a number if candidates have one epoch, else one number for each epoch, separated by spaces. Rows
        without a value, and those told before, are skipped.
        """
        values = read_values(file, self._objectives)
        with self._open_store() as store:
            running = {segment.trial: segment for segment in store.segments() if segment.status == RUNNING}
            told = values.keys() & running.keys()
            for number in sorted(told):
                try:
                    measured = self._parse(values[number], running[number].epochs)
                except UsageError as error:
                    raise UsageError(f"{file}: trial {number}: {error}") from None
                store.complete(running[number].number, measured.curve, 0.0, measured.objectives)
            unknown = [number for number in values if number >= len(store.trials())]
        if unknown:
            raise UsageError(
                f"{file}: trial {unknown[0]} is not a trial of {self.folder}; other values are recorded"
            )
        return len(told)

    def reclaim(self) -> int:
        """Have `ask` return candidates again whose values were never told; return their number."""
        with self._open_store() as store:
            count = sum(segment.status == RUNNING for segment in store.segments())
            store.requeue()
            return count

    def result(self) -> SearchResult:
        """Train the predictor on all trials, and recommend a candidate for each budget."""
        with self._open_store() as store:
            trials = store.trials()
            epochs = self._plan.settings.epochs
            if len(rank_trials(trials, epochs)) < MIN_TRIALS:
                raise UsageError(
                    f"{self.folder}: fewer than {MIN_TRIALS} trials have reached epoch {epochs}"
                )
            return conclude_search(self._plan, store, trials)

    def _propose(self, store: TrialStore) -> list[Segment]:
        trials = store.trials()
        history = visible_history(trials, self._plan.settings.epochs)
        if self._plan.settings.paper and history.pending:
            return []
        return store.add(self._proposer.propose(history), self.space.decode)

    def _hand_out(self, store: TrialStore, segment: Segment) -> Candidate:
        store.start(segment.number)
        trial = store.trial(segment.trial)
        settings = self._plan.settings
        return Candidate(
            self.space,
            trial.candidate,
            number=trial.number,
            seed=trial_seed(settings.seed, trial.number),
            epochs=segment.epochs,
            full_epochs=settings.epochs,
            folder=store.trial_folder(trial.number),
        )

    def _asked_segment(self, store: TrialStore, candidate: Candidate) -> Segment:
        """Return the segment that a candidate was asked for."""
        trials = store.trials()
        if candidate.number < len(trials):
            trial = trials[candidate.number]
            segment = trial.segments[-1]
            is_same = np.array_equal(trial.candidate, candidate.vector)
            if is_same and segment.status == RUNNING and segment.epochs == candidate.epochs:
                return segment
        raise UsageError(
            f"candidate {candidate.number} is not being evaluated to epoch {candidate.epochs}: it is not "
            "from `ask`, or its value was told before"
        )

    def _count_epochs(self, curve: Any) -> int:
        """Return the number of epochs that an own candidate was trained, from its values."""
        epochs = self._plan.settings.epochs
        values = curve
        if isinstance(curve, Mapping):
            # A number stands for all epochs
            values = curve.get(next(iter(self._objectives), ""), ())
            if np.ndim(values) == 0:
                return epochs
        count = len(np.atleast_1d(values))
        if not 1 <= count <= epochs:
            raise UsageError(f"the curve has {count} values; expected one for each of 1 to {epochs} epochs")
        return count

    def _parse(self, curve: Any, epochs: int) -> Measurements:
        return parse_measurements(curve, epochs, self._objectives)

    def _add_given(self, store: TrialStore, values: Mapping[str, Any], epochs: int) -> Segment:
        proposal = Proposal(epochs, self.space.encode(values), phase=GIVEN)
        (segment,) = store.add([proposal], self.space.decode)
        return segment

    @contextlib.contextmanager
    def _open_store(self) -> Iterator[TrialStore]:
        """Open the store for this process alone, after waiting for others that ask or tell."""
        lock = FolderLock(self.folder, "search", "choose a different folder", wait_seconds=_LOCK_SECONDS)
        with lock, contextlib.closing(TrialStore(self.folder, create=True)) as store:
            yield store
