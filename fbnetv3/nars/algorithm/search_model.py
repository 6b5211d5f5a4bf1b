"""The posterior of candidates' values after the last epoch, given the trials so far: what proposals are based on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbnetv3.nars.algorithm.history import History, stack_candidates
from fbnetv3.nars.algorithm.trial_store import Trial
from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, Prediction
from fbnetv3.nars.space.search_space import Space


class SearchModel:
    """A Gaussian process on all trials, in transformed values: higher is better, mean 0, deviation 1.

    Trials that are running are believed to end as predicted, so that proposals made in the meantime differ.
    """

    def __init__(self, space: Space, history: History, sign: float = 1.0) -> None:
        """Fit to the trials of a history, at least two of them completed; `sign` is -1 if lower values are better."""
        self.space = space
        self.history = history
        self.sign = sign
        completed = history.completed
        values = sign * np.array([trial.curve[-1] for trial in completed])
        self.transform = AccuracyTransform.fit(values)
        self.process = GaussianProcess(space, parameters=history.state or None)
        self.process.fit(stack_candidates(completed), self.transform.transform(values))
        self.parameters = tuple(self.process.parameters.tolist())
        self.completed_means = self.process.predict(stack_candidates(completed)).mean
        self._believe([trial for trial in history.trials if trial.number in history.pending])

    def _believe(self, pending: Sequence[Trial]) -> None:
        """Condition on the predicted values of pending trials too."""
        if not pending:
            return
        completed = self.history.completed
        candidates = stack_candidates(pending)
        values = self.sign * np.array([trial.curve[-1] for trial in completed])
        targets = np.concatenate([self.transform.transform(values), self.process.predict(candidates).mean])
        self.process.condition(np.concatenate([stack_candidates(completed), candidates]), targets)

    @property
    def best(self) -> float:
        """Highest posterior mean of the completed trials."""
        return float(self.completed_means.max())

    def predict(self, candidates: np.ndarray) -> Prediction:
        """Predict transformed values of candidates, integers (N, variables)."""
        return self.process.predict(candidates)

    def predict_value(self, candidate: np.ndarray) -> tuple[float, float]:
        """Predict a candidate's value and its standard deviation, in the units of the trials."""
        prediction = self.process.predict(candidate[None])
        mean, upper = self.transform.inverse(prediction.mean + np.array([0, prediction.std[0]]))
        return float(self.sign * mean), float(upper - mean)

    def rank_trials(self) -> np.ndarray:
        """Return the candidates of all trials with a result, best posterior mean first, integers (N, variables)."""
        candidates = stack_candidates([trial for trial in self.history.trials if trial.curve])
        return candidates[np.argsort(-self.process.predict(candidates).mean, kind="stable")]
