"""Stage 2 of Algorithm 1, constrained iterative optimization (Sec. 3.3): rounds of trials from a fixed pool.

The predictor is refitted after each round, and each round evaluates the candidates that it predicts to be best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fbnetv3.nars.predictor.accuracy_predictor import MIN_TRIALS, AccuracyPredictor
from fbnetv3.nars.proposals.early_stopping import stopping_epoch
from fbnetv3.nars.trials.history import History, stack_candidates
from fbnetv3.nars.trials.trial_store import INITIAL, PROPOSED, Proposal, Trial


@dataclass(frozen=True)
class PaperSearch:
    """Proposes rounds of trials. Proposals depend only on the history and the pool."""

    pool: np.ndarray  # candidates, integers (N, variables), of which the first are tried first
    pretrain: Callable[[], AccuracyPredictor]
    epochs: int  # length of a full evaluation
    num_rounds: int
    round_size: int
    early_stopping_correlation: float | None
    early_stopping_confidence: float | None
    _predictors: list[AccuracyPredictor] = field(default_factory=list)

    def num_required(self, number: int) -> int:
        """Return how many of the first segments must have ended before segment `number` is proposed: all."""
        return number

    def propose(self, history: History) -> list[Proposal]:
        """Return the next round; nothing after the last one, or if every candidate of the pool has been tried."""
        next_round = 1 + max((trial.round for trial in history.trials), default=-1)
        if next_round >= self.num_rounds:
            return []
        if next_round == 0:
            # The pool is in quasi-random or random order, so its beginning is a sample of it
            first = self.pool[: self.round_size]
            return [Proposal(self.epochs, candidate, phase=INITIAL) for candidate in first]
        epoch = self.stopping_epoch(history.trials)
        reached = [trial for trial in history.trials if len(trial.curve) >= epoch]
        untried = self._untried(history)
        if len(reached) < MIN_TRIALS or not len(untried):
            return []
        predictor = self._predictor()
        predictor.fit(stack_candidates(reached), np.array([trial.value(epoch) for trial in reached]))
        prediction = predictor.predict(untried)
        order = np.argsort(-predictor.sign * prediction.mean, kind="stable")[: self.round_size]
        return [
            Proposal(
                epoch,
                untried[index],
                phase=PROPOSED,
                round=next_round,
                predicted=float(prediction.mean[index]),
                predicted_std=float(prediction.std[index]),
            )
            for index in order
        ]

    def stopping_epoch(self, trials: tuple[Trial, ...]) -> int:
        """Return the epochs of the trials after the first round, chosen by the curves of the first."""
        if self.early_stopping_correlation is None or self.num_rounds == 1:
            return self.epochs
        curves = [trial.curve for trial in trials if trial.round == 0 and len(trial.curve) == self.epochs]
        return stopping_epoch(
            np.array(curves).reshape(-1, self.epochs),
            self.early_stopping_correlation,
            self.early_stopping_confidence,
        )

    def _predictor(self) -> AccuracyPredictor:
        """Return the pretrained predictor."""
        if not self._predictors:
            self._predictors.append(self.pretrain())
        return self._predictors[0]

    def _untried(self, history: History) -> np.ndarray:
        tried = {trial.candidate.tobytes() for trial in history.trials}
        return self.pool[[row.tobytes() not in tried for row in self.pool]]
