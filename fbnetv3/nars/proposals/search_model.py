"""The posterior of candidates' values after the last epoch, given the trials so far: what proposals are based on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.curve_forecast import CurveForecaster
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, ValuePrediction
from fbnetv3.nars.proposals.acquisition import log_expected_improvement
from fbnetv3.nars.proposals.warm_start import WarmStart
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.history import History, stack_candidates
from fbnetv3.nars.trials.trial_store import Trial

PredictFunction = Callable[[np.ndarray], ValuePrediction]
"""Predicts transformed values of candidates, integers (N, variables)."""

State = Mapping[str, Any]
"""What a proposal leaves for the next one, as JSON data.

It holds the parameters of the Gaussian processes, from which the next fit starts, by the epoch from which they predict;
the expected gains of the last proposals; and the number of final proposals, by the name of the budget.
"""

# Keys of the state
_FROM_CANDIDATE = "0"
_GAINS = "gains"
_FINALS = "finals"
_DEGREES_OF_FREEDOM = 4
# Value of failed trials, and its deviation: a cause such as too little memory concerns similar candidates, too, but
# some causes have nothing to do with the candidate
_FAILURE_VALUE = -1.0
_FAILURE_DEVIATION = 1.0
# Limit on the trials that the process is fitted to: its time grows with the square of their number, and more
_MAX_TRIALS = 1000


class SearchModel:
    """A Gaussian process on all trials, in transformed values: higher is better, mean 0, deviation 1.

    Paused trials count with a forecast from their curves, as uncertain as it is. Failed ones count as bad. Trials that
    are running are believed to end as predicted, so that proposals made in the meantime differ.

    Args:
        space: the space of the candidates.
        history: trials, of which at least two are completed.
        sign: -1 if lower values are better.
        warm_start: earlier measurements.
    """

    def __init__(
        self, space: Space, history: History, sign: float = 1.0, warm_start: WarmStart | None = None
    ) -> None:
        self.space = space
        self.history = history
        self.sign = sign
        self._state = dict(history.state)
        self._warm_start = warm_start
        completed = history.completed
        self._curves = sign * np.array([trial.curve for trial in completed])
        self._candidates = stack_candidates(completed)
        self.transform = AccuracyTransform.fit(self._curves[:, -1])
        self._targets = self.transform.transform(self._curves[:, -1])
        self._forecasters: dict[int, CurveForecaster] = {}
        self.forecasts = self._forecast_paused()
        self.process = self._fit()
        self.completed_means = self.predict(self._candidates).mean

    def _fit(self) -> GaussianProcess:
        """Fit a process to completed and paused trials, and condition it on what is believed of pending ones."""
        paused = self.history.paused
        selected = _select_trials(self._targets)
        candidates = [self._candidates[selected]]
        targets = [self._targets[selected]]
        noise = [np.zeros(len(selected))]
        if paused:
            means, stds = np.array([self.forecasts[trial.number] for trial in paused]).T
            selected = _select_trials(means)
            candidates.append(stack_candidates(paused)[selected])
            targets.append(means[selected])
            noise.append(stds[selected] ** 2)
        failed = [trial for trial in self.history.trials if trial.number in self.history.failed]
        if failed:
            failed = failed[-_MAX_TRIALS:]
            candidates.append(stack_candidates(failed))
            targets.append(np.full(len(failed), _FAILURE_VALUE))
            noise.append(np.full(len(failed), _FAILURE_DEVIATION**2))
        stacked = np.concatenate(candidates)
        covariates = self._covariates(stacked)
        num_covariates = 0 if covariates is None else covariates.shape[1]
        process = GaussianProcess(self.space, num_covariates, self._state.get(_FROM_CANDIDATE))
        process.fit(stacked, np.concatenate(targets), np.concatenate(noise), covariates)
        self._state[_FROM_CANDIDATE] = process.parameters.tolist()
        pending = [trial for trial in self.history.trials if trial.number in self.history.pending]
        if pending:
            believed = stack_candidates(pending)
            targets.append(process.predict(believed, self._covariates(believed)).mean)
            noise.append(np.zeros(len(believed)))
            stacked = np.concatenate([stacked, believed])
            covariates = self._covariates(stacked)
            process.fit(stacked, np.concatenate(targets), np.concatenate(noise), covariates, optimize=False)
        return process

    def forecaster(self, epoch: int) -> CurveForecaster:
        """Return a forecaster from the first `epoch` epochs of curves."""
        if epoch not in self._forecasters:
            others = [trial for trial in self.history.paused if len(trial.curve) >= epoch]
            values = self.sign * np.array([trial.value(epoch) for trial in others])
            # Fitted again only when there are more trials to learn from
            num_completed, *parameters = self._state.get(str(epoch), (0,))
            self._forecasters[epoch] = CurveForecaster(
                self.space,
                epoch,
                self._candidates,
                self._curves,
                self._targets,
                values,
                parameters or None,
                refit=len(self._targets) != num_completed,
            )
            fitted = self._forecasters[epoch].process.parameters.tolist()
            self._state[str(epoch)] = [len(self._targets), *fitted]
        return self._forecasters[epoch]

    def _forecast_paused(self) -> dict[int, tuple[float, float]]:
        """Forecast paused trials: transformed value after the last epoch, and its standard deviation, by number."""
        forecasts = {}
        for epoch in sorted({len(trial.curve) for trial in self.history.paused}):
            trials = [trial for trial in self.history.paused if len(trial.curve) == epoch]
            curves = self.sign * np.array([trial.curve for trial in trials])
            mean, std = self.forecaster(epoch).forecast(stack_candidates(trials), curves)
            for trial, pair in zip(trials, zip(mean.tolist(), std.tolist(), strict=True), strict=True):
                forecasts[trial.number] = pair
        return forecasts

    def expected_gain(self, candidate: np.ndarray, value: float) -> float:
        """Return by how much a candidate is expected to exceed a transformed value."""
        return math.exp(log_expected_improvement(self.predict(candidate[None]), value)[0])

    def forecast_gain(self, trial: Trial, value: float) -> float:
        """Return by how much a paused trial is expected to exceed a transformed value in the end."""
        mean, std = self.forecasts[trial.number]
        forecast = ValuePrediction(np.array([mean]), np.array([std]))
        return math.exp(log_expected_improvement(forecast, value)[0])

    def hopeless_share(self, epoch: int, min_chance: float) -> float:
        """Return the share of completed trials that would have been stopped after `epoch` epochs."""
        forecast = self.forecaster(epoch).leave_one_out()
        # Heavy tails allow for trials unlike those before
        chances = student_t.sf((self.best - forecast.mean) / forecast.std, _DEGREES_OF_FREEDOM)
        return float(np.mean(chances < min_chance))

    @property
    def gains(self) -> Sequence[float]:
        """Expected gains of the last proposals, in the units of the trials."""
        return self._state.get(_GAINS, ())

    def record_gain(self, gain: float, count: int) -> None:
        """Record an expected gain of a transformed value; the last `count` gains are kept."""
        self._state[_GAINS] = [*self.gains, gain * self.transform.scale][-count:]

    def count_finals(self, budget: str) -> int:
        """Return the number of final proposals for a budget so far."""
        return self._state.get(_FINALS, {}).get(budget, 0)

    def record_final(self, budget: str) -> None:
        """Record a final proposal for a budget."""
        self._state[_FINALS] = {**self._state.get(_FINALS, {}), budget: self.count_finals(budget) + 1}

    @property
    def completed_candidates(self) -> np.ndarray:
        """Candidates of the completed trials, integers (N, variables)."""
        return self._candidates

    @property
    def state(self) -> State:
        """State for the next proposal."""
        return self._state

    @property
    def best(self) -> float:
        """Highest posterior mean of the completed trials."""
        return float(self.completed_means.max())

    def predict(self, candidates: np.ndarray) -> ValuePrediction:
        """Predict transformed values of candidates, integers (N, variables)."""
        return self.process.predict(candidates, self._covariates(candidates))

    def perturbed(self, deviation: float, rng: np.random.Generator) -> PredictFunction:
        """Return predictions under another hypothesis of the length scales, see `GaussianProcess.perturbed`."""
        process = self.process.perturbed(deviation, rng)
        return lambda candidates: process.predict(candidates, self._covariates(candidates))

    def _covariates(self, candidates: np.ndarray) -> np.ndarray | None:
        return None if self._warm_start is None else self._warm_start.covariates(candidates)

    def predict_value(self, candidate: np.ndarray) -> tuple[float, float]:
        """Predict a candidate's value and its standard deviation, in the units of the trials."""
        prediction = self.predict(candidate[None])
        mean, upper = self.transform.inverse(prediction.mean + np.array([0, prediction.std[0]]))
        return float(self.sign * mean), float(upper - mean)

    def rank_trials(self) -> np.ndarray:
        """Return the candidates of all trials with a result, best posterior mean first, integers (N, variables)."""
        candidates = stack_candidates([trial for trial in self.history.trials if trial.curve])
        return candidates[np.argsort(-self.predict(candidates).mean, kind="stable")]


def _select_trials(targets: np.ndarray) -> np.ndarray:
    """Return indices of at most `_MAX_TRIALS` trials: the best half, and others evenly over the search."""
    if len(targets) <= _MAX_TRIALS:
        return np.arange(len(targets))
    best = np.argsort(-targets, kind="stable")[: _MAX_TRIALS // 2]
    others = np.setdiff1d(np.arange(len(targets)), best)
    spread = others[np.linspace(0, len(others) - 1, _MAX_TRIALS - len(best)).astype(int)]
    return np.sort(np.concatenate([best, spread]))
