"""Stage 2, constrained iterative optimisation (Sec. 3.3): rounds of trials, each retraining the predictor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.early_stopping import stopping_epoch
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.algorithm.trial_store import DONE, FAILED, STOP_EPOCH, STOPPED, Trial, TrialStore
from fbnetv3.nars.execution.jobs import Executor, Job, Outcome
from fbnetv3.nars.predictor.accuracy_predictor import Predictor

# How long to wait for an evaluation before looking around, in seconds.
_PATIENCE = 1.0
# Accuracies that a predictor needs to learn anything.
_LEAST = 2


class SearchError(UserError):
    """A search that cannot go on; what it has measured is kept."""


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        stage: what it does: "pretraining", "trials", "evolution" or "done".
        round, rounds: of the trials; the first is 0.
        trials: of this round.
        epochs: how far this round's trials are evaluated.
        best: best accuracy so far at `stop_epoch`, or None.
        error: of the predictor on the last whole round, before it had seen it: root of the mean squared error.
        seconds: left until the last trial ends, at the pace so far, or None.
        message: what has happened, for people; "" for nothing worth a line.
        whole: whether the round has ended.
    """

    stage: str
    round: int = 0
    rounds: int = 0
    trials: Sequence[Trial] = ()
    epochs: int = 0
    best: float | None = None
    error: float | None = None
    seconds: float | None = None
    message: str = ""
    whole: bool = False

    def count(self, status: str) -> int:
        """How many of the round's trials have that status."""
        return sum(trial.status == status for trial in self.trials)


Watch = Callable[[Progress], None]


def ranked(trials: Sequence[Trial], epoch: int) -> list[Trial]:
    """The trials that are done, those with the highest accuracy after an epoch first."""
    return sorted((t for t in trials if t.status == DONE), key=lambda t: (-t.accuracy(epoch), t.number))


def propose(predictor: Predictor, pool: np.ndarray, tried: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of the pool that promise most and have not been tried.

    Args:
        predictor: trained.
        pool: integers (N, variables).
        tried: integers (M, variables).
        count: how many are wanted.

    Returns:
        Candidates (count or fewer, variables), the most promising first; and what is predicted of each.
    """
    known = {row.tobytes() for row in tried}
    fresh = pool[[row.tobytes() not in known for row in pool]]
    if not len(fresh):
        return fresh, np.zeros(0)
    scores = predictor(fresh)
    order = np.argsort(-scores, kind="stable")[:count]
    return fresh[order], scores[order]


class Rounds:
    """The rounds of a search: what has been done of them is in the store, and is not done again.

    Args:
        settings: of the search.
        rounds: how many.
        pool: candidates to choose from, integers (N, variables).
        store: of the trials.
        predictor: pretrained.
        watch: called whenever something has happened.
    """

    def __init__(
        self,
        settings: SearchSettings,
        rounds: int,
        pool: np.ndarray,
        store: TrialStore,
        predictor: Predictor,
        watch: Watch,
    ) -> None:
        self.settings, self.rounds, self.pool, self.store = settings, rounds, pool, store
        self.predictor, self.watch = predictor, watch
        self.error: float | None = None
        self._paces: deque[float] = deque(maxlen=50)
        self._slots = 1

    def run(self, executor: Executor) -> None:
        """Run every round; afterwards the predictor is trained on all of them.

        Raises:
            SearchError: too many failures, or nothing to train the predictor on.
        """
        self._slots = executor.slots
        for number in range(self.rounds):
            if number >= self.store.rounds() and not self._propose(number):
                self._say(number, "every candidate of the pool has been tried")
                return
            self._run_trials(number, executor)
            self._learn(number)

    def stop_epoch(self) -> int:
        """The epoch after which accuracies are compared, and at which trials after the first round end."""
        return self.store.about().get(STOP_EPOCH, self.settings.epochs)

    def _settle_stop_epoch(self) -> None:
        """Choose it by the curves of the first round (Sec. 3.3), once and for all, if there are other rounds."""
        curves = [trial.curve for trial in self.store.all(0) if trial.status == DONE]
        if self.rounds > 1 and self.settings.stop_above is not None and STOP_EPOCH not in self.store.about():
            epoch = stopping_epoch(np.array(curves), self.settings.stop_above)
            self.store.set_about({STOP_EPOCH: epoch})
            self._say(0, f"accuracies are compared after epoch {epoch} of {self.settings.epochs}")

    def _propose(self, number: int) -> bool:
        """Write a round's trials down. False where there is nothing left to try."""
        s = self.settings
        if number == 0:
            # the pool is a quasi-random sequence, and so is its beginning
            self.store.add_round(0, self.pool[: s.batch], s.epochs)
            return True
        tried = np.array([trial.candidate for trial in self.store.all()])
        chosen, predicted = propose(self.predictor, self.pool, tried, s.batch)
        if len(chosen):
            self.store.add_round(number, chosen, self.stop_epoch(), predicted)
        return bool(len(chosen))

    def _run_trials(self, number: int, executor: Executor) -> None:
        """Run what has not ended of a round; when this returns, all has."""
        s, store = self.settings, self.store
        waiting = deque(trial for trial in store.all(number) if trial.status not in (DONE, FAILED))
        running: dict[int, Trial] = {}
        self._say(number)
        while waiting or running:
            while waiting and len(running) < executor.slots:
                trial = waiting.popleft()
                running[trial.number] = trial
                store.start(trial.number)
                folder = store.folder / "trials" / f"{trial.number:05d}"
                executor.submit(
                    Job(trial.number, trial.candidate, trial.epochs, s.epochs, s.seed, folder, trial.attempts)
                )
                self._say(number)
            for outcome in executor.wait(_PATIENCE):
                trial = running.pop(outcome.number)
                if self._record(number, trial, outcome):
                    waiting.append(replace(trial, attempts=trial.attempts + 1))
            failed = sum(t.status == FAILED for t in store.all())
            if failed > s.max_failures:
                self._stop(f"{failed} trials have failed, more than max_failures {s.max_failures}")

    def _record(self, number: int, trial: Trial, outcome: Outcome) -> bool:
        """Write an outcome down. True if it is to be tried again."""
        s, store = self.settings, self.store
        if outcome.curve is not None:
            store.finish(trial.number, outcome.curve, outcome.seconds)
            self._paces.append(outcome.seconds / trial.epochs)
            self._say(number)
            return False
        assert outcome.error is not None
        again = trial.attempts < s.retries
        store.fail(trial.number, outcome.error, outcome.seconds, again)
        self._say(number, f"trial {trial.number} failed{', is tried again' if again else ''}: {outcome.error}")
        return again

    def _learn(self, number: int) -> None:
        """Train the predictor on all that has been measured."""
        done = [trial for trial in self.store.all() if trial.status == DONE and trial.round <= number]
        if len(done) < _LEAST:
            self._stop(f"only {len(done)} trials have an accuracy, which is too few to learn from")
        if number == 0:
            self._settle_stop_epoch()
        epoch = self.stop_epoch()
        self.error = predictor_error([trial for trial in done if trial.round == number], epoch)
        accuracies = np.array([trial.accuracy(epoch) for trial in done])
        self.predictor.fit(np.array([trial.candidate for trial in done]), accuracies)
        self._say(number, whole=True)

    def _stop(self, reason: str) -> None:
        self.store.set_about({STOPPED: True})
        errors = [f"trial {t.number}: {t.error}" for t in self.store.all() if t.status == FAILED]
        raise SearchError(
            f"{reason}; {'; '.join(errors[:3]) or 'none has failed'}. "
            "Mend the cause and resume: what has failed is tried again, what is done is kept"
        )

    def best(self) -> float | None:
        """The best accuracy at the epoch at which trials are compared."""
        done = ranked(self.store.all(), epoch := self.stop_epoch())
        return done[0].accuracy(epoch) if done else None

    def _say(self, number: int, message: str = "", whole: bool = False) -> None:
        trials = self.store.all(number)
        epochs = trials[0].epochs if trials else 0
        left = self._left(number, trials)
        self.watch(
            Progress("trials", number, self.rounds, trials, epochs, self.best(), self.error, left, message, whole)
        )

    def _left(self, number: int, trials: Sequence[Trial]) -> float | None:
        """Seconds to the end of the last round at the pace so far, if later rounds go as far as this one."""
        if not self._paces or not trials:
            return None
        now = sum(trial.epochs for trial in trials if trial.status not in (DONE, FAILED))
        later = (self.rounds - number - 1) * self.settings.batch * trials[0].epochs
        return float(np.mean(self._paces)) * (now + later) / self._slots


def predictor_error(trials: Sequence[Trial], epoch: int) -> float | None:
    """Root of the mean squared error of what was predicted of trials before they ran; None where nothing was."""
    pairs = [(trial.predicted, trial.accuracy(epoch)) for trial in trials if trial.predicted is not None]
    return float(np.sqrt(np.mean([(p - a) ** 2 for p, a in pairs]))) if pairs else None
