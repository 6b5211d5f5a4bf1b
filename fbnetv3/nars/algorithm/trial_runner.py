"""Run the trials of a search: propose segments, have an executor evaluate them, and record the outcomes."""

from __future__ import annotations

import time
from collections import deque
from typing import NoReturn, Protocol

import numpy as np

from fbnetv3.errors import UserError
from fbnetv3.nars.execution.attempts import Outcome, TrialAttempt
from fbnetv3.nars.execution.executors import Executor
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.history import History, visible_history
from fbnetv3.nars.trials.progress import (
    ProgressCallback,
    SearchProgress,
    SearchStage,
    count_epochs,
    rank_trials,
)
from fbnetv3.nars.trials.trial_store import (
    COMPLETED,
    FAILED,
    STOPPED_BY_FAILURES,
    Proposal,
    Segment,
    Trial,
    TrialStore,
)

_POLL_SECONDS = 1.0
_SHOWN_ERRORS = 3
_SEEDS = 2**31
_ROUNDING = 1e-5


class SearchError(UserError):
    """A search that cannot continue. Its finished trials are kept."""


class Proposer(Protocol):
    """Decides what a search runs next. Proposals depend only on the history, so an interrupted search ends the same."""

    def num_required(self, number: int) -> int:
        """Return how many of the first segments must have ended before segment `number` is proposed."""

    def propose(self, history: History) -> list[Proposal]:
        """Return what to run next; nothing at the end of the search."""


def trial_seed(seed: int, number: int) -> int:
    """Return the random seed for the evaluation of a trial."""
    return int(np.random.default_rng([seed, number]).integers(_SEEDS))


class TrialRunner:
    """Runs trials until nothing more is proposed. Segments that are completed in the store are not run again."""

    def __init__(
        self,
        settings: SearchSettings,
        space: Space,
        proposer: Proposer,
        store: TrialStore,
        epochs_planned: int,
        on_progress: ProgressCallback,
        continues: bool = True,
    ) -> None:
        self.settings = settings
        self.space = space
        self.proposer = proposer
        self.store = store
        self.epochs_planned = epochs_planned
        self.on_progress = on_progress
        self.continues = continues
        # A copy of the store's trials, so that progress reports do not read the file
        self.trials = store.trials()
        self._seconds_per_epoch: deque[float] = deque(maxlen=50)
        self._slots = 1
        self._alone: set[int] = set()  # trials that ran out of memory, and now get a GPU of their own
        self.is_complete = False  # whether there is nothing more to propose
        self._has_warned = False  # whether the user knows that values of earlier epochs have changed
        self._is_stopped = False  # whether the callback has ended the search

    def run(self, executor: Executor) -> None:
        """Run all trials, or until the time is over or the progress callback returns False."""
        self._slots = executor.slots
        segments = self.store.segments()
        waiting = deque(segment.number for segment in segments if not segment.has_ended)
        num_running = 0
        start = time.monotonic()
        self.report_progress()
        while not self._is_stopped:
            # Keep all slots busy
            while num_running < executor.slots:
                if not waiting:
                    waiting.extend(segment.number for segment in self._propose())
                if not waiting:
                    break
                executor.submit(self._start_segment(waiting.popleft()))
                num_running += 1
            if not num_running:
                return
            for outcome in executor.wait(_POLL_SECONDS):
                num_running -= 1
                if self._record_outcome(outcome):
                    waiting.append(outcome.number)
            self._check_failures()
            limit = self.settings.max_seconds
            if limit is not None and time.monotonic() - start > limit:
                self.report_progress(
                    f"max_seconds: {limit:g} s have passed; running trials are interrupted"
                )
                return

    def report_progress(
        self, message: str = "", stage: SearchStage = "trials", ended: Trial | None = None
    ) -> None:
        """Report the state of the search."""
        ranked = rank_trials(self.trials, self.settings.epochs, self.settings.sign)
        epochs_done = count_epochs(self.trials, self.continues)
        seconds_left = None
        if self._seconds_per_epoch:
            epochs_left = max(0, self.epochs_planned - epochs_done)
            seconds_left = float(np.mean(self._seconds_per_epoch)) * epochs_left / self._slots
        progress = SearchProgress(
            stage=stage,
            trials=self.trials,
            full_epochs=self.settings.epochs,
            epochs_done=epochs_done,
            epochs_planned=self.epochs_planned,
            best=ranked[0] if ranked else None,
            ended=ended,
            seconds_left=seconds_left,
            message=message,
        )
        # Other falsy values, such as None, are no request to stop
        self._is_stopped |= self.on_progress(progress) is False

    def _propose(self) -> list[Segment]:
        """Add what runs next to the store, if enough of the segments before it have ended."""
        number = sum(len(trial.segments) for trial in self.trials)
        required = self.proposer.num_required(number)
        ended = {segment.number for trial in self.trials for segment in trial.segments if segment.has_ended}
        if self.is_complete or not ended.issuperset(range(required)):
            return []
        proposals = self.proposer.propose(visible_history(self.trials, self.settings.epochs, required))
        self.is_complete = not proposals
        segments = self.store.add(proposals, self.space.decode)
        if segments:
            self.trials = self.store.trials()
        return segments

    def _start_segment(self, number: int) -> TrialAttempt:
        segment = self.store.start(number)
        trial = self._update(segment)
        self.report_progress()
        return TrialAttempt(
            number=number,
            trial=trial.number,
            vector=trial.candidate,
            epochs=segment.epochs,
            full_epochs=self.settings.epochs,
            seed=trial_seed(self.settings.seed, trial.number),
            folder=self.store.trial_folder(trial.number),
            failed_attempts=segment.attempts,
            alone=trial.number in self._alone,
        )

    def _record_outcome(self, outcome: Outcome) -> bool:
        """Write an outcome to the store; return True if the segment should be retried."""
        retry = False
        message = ""
        if outcome.curve is not None:
            message = self._compare_curves(self._find_trial(outcome.number), outcome.curve)
            segment = self.store.complete(
                outcome.number, outcome.curve, outcome.seconds, outcome.objectives
            )
        else:
            assert outcome.error is not None
            failed = self._find_trial(outcome.number)
            retry = failed.segments[-1].attempts < self.settings.retries
            retrying = ", retrying" if retry else ""
            if outcome.out_of_memory and retry:
                # With all of the GPU's memory it would run out again
                retry = failed.number not in self._alone
                retrying = ", retrying alone" if retry else " alone"
                self._alone.add(failed.number)
            segment = self.store.fail(outcome.number, outcome.error, outcome.seconds, retry)
            message = f"trial {segment.trial} failed{retrying}: {outcome.error}"
        trial = self._update(segment)
        if segment.status == COMPLETED:
            ends = [part.epochs for part in trial.segments if part.number < segment.number]
            start = max(ends, default=0) if self.continues else 0
            self._seconds_per_epoch.append(outcome.seconds / (segment.epochs - start))
        self.report_progress(message, ended=None if retry else trial)
        return retry

    def _compare_curves(self, trial: Trial, curve: tuple[float, ...]) -> str:
        """Return a warning if the values before a trial was paused have changed, unless there was one before."""
        earlier = np.array(trial.curve)
        repeated = np.array(curve[: len(earlier)])
        if self._has_warned or np.allclose(repeated, earlier, rtol=_ROUNDING, atol=_ROUNDING):
            return ""
        self._has_warned = True
        difference = np.abs(repeated - earlier).max()
        return (
            f"trial {trial.number}: the values up to epoch {len(earlier)}, where it was paused, now differ by up to "
            f"{difference:.3g} and are replaced. An evaluator should depend only on the candidate and its seed"
        )

    def _find_trial(self, segment_number: int) -> Trial:
        return next(
            trial
            for trial in self.trials
            if any(segment.number == segment_number for segment in trial.segments)
        )

    def _update(self, segment: Segment) -> Trial:
        """Update the copy of a segment's trial."""
        self.trials[segment.trial] = self.store.trial(segment.trial)
        return self.trials[segment.trial]

    def _check_failures(self) -> None:
        num_failed = sum(trial.status == FAILED for trial in self.trials)
        if num_failed > self.settings.max_failures:
            limit = self.settings.max_failures
            self.fail(f"failed trials: {num_failed}, more than max_failures ({limit})")

    def fail(self, reason: str) -> NoReturn:
        """Stop the search; a resumed one retries the failed trials."""
        self.store.update_metadata({STOPPED_BY_FAILURES: True})
        errors = [f"trial {trial.number}: {trial.error}" for trial in self.trials if trial.status == FAILED]
        raise SearchError(
            f"{reason}; {'; '.join(errors[:_SHOWN_ERRORS]) or 'no trial has failed'}. "
            "Fix the cause and resume: failed trials are retried, finished ones are kept"
        )
