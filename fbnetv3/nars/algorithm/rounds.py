"""Stage 2, constrained iterative optimization (Sec. 3.3): the predictor is refitted after each round of trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np

from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.early_stopping import stopping_epoch
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.algorithm.trial_store import (
    DONE,
    FAILED,
    STOPPED_BY_FAILURES,
    STOPPING_EPOCH,
    Trial,
    TrialStore,
)
from fbnetv3.nars.execution.attempts import Outcome, TrialAttempt
from fbnetv3.nars.execution.executors import Executor
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor

_POLL_SECONDS = 1.0
_MIN_ACCURACIES = 2  # needed to train the predictor
_SHOWN_ERRORS = 3


class SearchError(UserError):
    """A search that cannot continue. Its finished trials are kept."""


SearchStage = Literal["pretraining", "trials", "evolution", "done"]


@dataclass(frozen=True)
class SearchProgress:
    """The state of a running search."""

    stage: SearchStage
    round: int = 0  # current round, from 0
    num_rounds: int = 0
    trials: Sequence[Trial] = ()  # trials of the current round
    epochs: int = 0  # epochs for which each of these is evaluated
    best_accuracy: float | None = None  # highest accuracy so far, at the stopping epoch
    predictor_error: float | None = None  # RMSE on the last complete round, before training on it
    seconds_left: float | None = None  # estimated time to the end of the last round
    message: str = ""  # an event to show to the user
    round_complete: bool = False

    def count(self, status: str) -> int:
        """Count the trials of the round that have a status."""
        return sum(trial.status == status for trial in self.trials)


ProgressCallback = Callable[[SearchProgress], None]


def rank_trials(trials: Sequence[Trial], epoch: int) -> list[Trial]:
    """Sort the trials that are done by their accuracy after an epoch, best first."""
    done = [trial for trial in trials if trial.status == DONE]
    return sorted(done, key=lambda trial: (-trial.accuracy(epoch), trial.number))


def predictor_error(trials: Sequence[Trial], epoch: int) -> float | None:
    """Compute the root mean squared error of the accuracies predicted when trials were proposed, if there are any."""
    pairs = [(trial.predicted, trial.accuracy(epoch)) for trial in trials if trial.predicted is not None]
    if not pairs:
        return None
    return float(np.sqrt(np.mean([(predicted - accuracy) ** 2 for predicted, accuracy in pairs])))


def propose_candidates(
    predictor: AccuracyPredictor, pool: np.ndarray, tried: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `count` untried candidates of the pool, those predicted to be best, and their predictions."""
    tried_keys = {row.tobytes() for row in tried}
    untried = pool[[row.tobytes() not in tried_keys for row in pool]]
    if not len(untried):
        return untried, np.zeros(0)
    scores = predictor(untried)
    order = np.argsort(-scores, kind="stable")[:count]
    return untried[order], scores[order]


class RoundRunner:
    """Runs the rounds of a search with a pretrained predictor and a pool, integers (N, variables).

    Trials that are done in the store are not run again.
    """

    def __init__(
        self,
        settings: SearchSettings,
        num_rounds: int,
        pool: np.ndarray,
        store: TrialStore,
        predictor: AccuracyPredictor,
        on_progress: ProgressCallback,
    ) -> None:
        self.settings = settings
        self.num_rounds = num_rounds
        self.pool = pool
        self.store = store
        self.predictor = predictor
        self.on_progress = on_progress
        self.predictor_error: float | None = None
        self.stopping_epoch: int = store.metadata().get(STOPPING_EPOCH, settings.epochs)
        # A copy of the store's trials, so that progress reports do not read the file
        self.trials = store.trials()
        self._seconds_per_epoch: deque[float] = deque(maxlen=50)
        self._slots = 1

    def run(self, executor: Executor) -> None:
        """Run all rounds; afterwards the predictor is trained on all trials."""
        self._slots = executor.slots
        for round_index in range(self.num_rounds):
            if round_index >= self.store.num_rounds() and not self._propose_round(round_index):
                self.report_progress(round_index, "every candidate of the pool has been tried")
                return
            self._run_trials(round_index, executor)
            self._train_predictor(round_index)

    def report_progress(
        self,
        round_index: int,
        message: str = "",
        round_complete: bool = False,
        stage: SearchStage = "trials",
    ) -> None:
        """Report the progress in a round."""
        trials = [trial for trial in self.trials if trial.round == round_index]
        ranked = rank_trials(self.trials, self.stopping_epoch)
        progress = SearchProgress(
            stage=stage,
            round=round_index,
            num_rounds=self.num_rounds,
            trials=trials,
            epochs=trials[0].epochs if trials else 0,
            best_accuracy=ranked[0].accuracy(self.stopping_epoch) if ranked else None,
            predictor_error=self.predictor_error,
            seconds_left=self._seconds_left(round_index, trials),
            message=message,
            round_complete=round_complete,
        )
        self.on_progress(progress)

    def _seconds_left(self, round_index: int, trials: Sequence[Trial]) -> float | None:
        """Estimate the time to the end of the last round, if later rounds run as many epochs as this one."""
        if not self._seconds_per_epoch or not trials:
            return None
        epochs_now = sum(trial.epochs for trial in trials if trial.status not in (DONE, FAILED))
        epochs_later = (self.num_rounds - round_index - 1) * self.settings.batch * trials[0].epochs
        return float(np.mean(self._seconds_per_epoch)) * (epochs_now + epochs_later) / self._slots

    def _propose_round(self, round_index: int) -> bool:
        """Add the trials of a round to the store; return False if no untried candidates are left."""
        batch = self.settings.batch
        if round_index == 0:
            # The pool is in quasi-random or random order, so its beginning is a sample of it
            self.store.add_round(0, self.pool[:batch], self.settings.epochs)
        else:
            tried = np.array([trial.candidate for trial in self.trials])
            candidates, predicted = propose_candidates(self.predictor, self.pool, tried, batch)
            if not len(candidates):
                return False
            self.store.add_round(round_index, candidates, self.stopping_epoch, predicted)
        self.trials = self.store.trials()
        return True

    def _run_trials(self, round_index: int, executor: Executor) -> None:
        trials = [trial for trial in self.trials if trial.round == round_index]
        waiting = deque(trial.number for trial in trials if trial.status not in (DONE, FAILED))
        num_running = 0
        self.report_progress(round_index)
        while waiting or num_running:
            # Keep all slots busy
            while waiting and num_running < executor.slots:
                executor.submit(self._start_trial(waiting.popleft()))
                num_running += 1
                self.report_progress(round_index)
            for outcome in executor.wait(_POLL_SECONDS):
                num_running -= 1
                if self._record_outcome(round_index, outcome):
                    waiting.append(outcome.number)
            num_failed = sum(trial.status == FAILED for trial in self.trials)
            if num_failed > self.settings.max_failures:
                self._fail(
                    f"failed trials: {num_failed}, more than max_failures ({self.settings.max_failures})"
                )

    def _start_trial(self, number: int) -> TrialAttempt:
        trial = self.trials[number] = self.store.start(number)
        return TrialAttempt(
            number=number,
            vector=trial.candidate,
            epochs=trial.epochs,
            full_epochs=self.settings.epochs,
            seed=self.settings.seed,
            folder=self.store.folder / "trials" / f"{number:05d}",
            failed_attempts=trial.attempts,
        )

    def _record_outcome(self, round_index: int, outcome: Outcome) -> bool:
        """Write an outcome to the store; return True if the trial should be retried."""
        trial = self.trials[outcome.number]
        retry = False
        message = ""
        if outcome.curve is not None:
            trial = self.store.finish(trial.number, outcome.curve, outcome.seconds)
            self._seconds_per_epoch.append(outcome.seconds / trial.epochs)
        else:
            assert outcome.error is not None
            retry = trial.attempts < self.settings.retries
            trial = self.store.fail(trial.number, outcome.error, outcome.seconds, retry)
            message = f"trial {trial.number} failed{', retrying' if retry else ''}: {outcome.error}"
        self.trials[trial.number] = trial
        self.report_progress(round_index, message)
        return retry

    def _train_predictor(self, round_index: int) -> None:
        """Train the predictor on the trials up to this round, and choose the stopping epoch after the first round."""
        done = [trial for trial in self.trials if trial.status == DONE and trial.round <= round_index]
        if len(done) < _MIN_ACCURACIES:
            self._fail(f"successful trials: {len(done)}; the predictor needs at least {_MIN_ACCURACIES}")
        if round_index == 0:
            self._choose_stopping_epoch(done)
        # The error on this round, whose accuracies the predictor has not seen yet
        new = [trial for trial in done if trial.round == round_index]
        self.predictor_error = predictor_error(new, self.stopping_epoch)
        candidates = np.array([trial.candidate for trial in done])
        accuracies = np.array([trial.accuracy(self.stopping_epoch) for trial in done])
        self.predictor.fit(candidates, accuracies)
        self.report_progress(round_index, round_complete=True)

    def _choose_stopping_epoch(self, first_round: Sequence[Trial]) -> None:
        """Choose the stopping epoch once, by the learning curves of the first round, if more rounds follow."""
        min_correlation = self.settings.early_stopping_correlation
        if self.num_rounds == 1 or min_correlation is None or STOPPING_EPOCH in self.store.metadata():
            return
        self.stopping_epoch = stopping_epoch(
            np.array([trial.curve for trial in first_round]), min_correlation
        )
        self.store.update_metadata({STOPPING_EPOCH: self.stopping_epoch})
        num_epochs = self.settings.epochs
        self.report_progress(
            0, f"accuracies are compared after epoch {self.stopping_epoch} of {num_epochs}"
        )

    def _fail(self, reason: str) -> NoReturn:
        self.store.update_metadata({STOPPED_BY_FAILURES: True})
        errors = [f"trial {trial.number}: {trial.error}" for trial in self.trials if trial.status == FAILED]
        raise SearchError(
            f"{reason}; {'; '.join(errors[:_SHOWN_ERRORS]) or 'no trial has failed'}. "
            "Fix the cause and resume: failed trials of the last round are retried, finished ones are kept"
        )
