"""Forecasts of the value after the last epoch, from the first epochs of a learning curve and the candidate.

Slow learners may end best, so the forecast is not the present rank: a Gaussian process on the candidates learns how
much more some gain than others in the epochs that are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, ValuePrediction
from fbnetv3.nars.space.search_space import Space

# Forecasts of trials unlike those before miss by more than leave-one-out forecasts do, and the more, the fewer curves
# are known: the deviations grow by this number over the number of curves
_CAUTION = 20.0


class CurveForecaster:
    """Forecasts from `epoch` epochs, learned from trials that ran to the end.

    Args:
        space: the space of the candidates.
        epoch: number of epochs of the curves that are forecast.
        candidates: candidates of the trials that ran to the end, integers (N, variables).
        curves: their values after each epoch; higher is better, (N, epochs).
        targets: their transformed values after the last epoch, (N,).
        other_values: values of other trials after `epoch` epochs, (M,), for the scale of the values at that epoch.
        parameters: parameters of the Gaussian process from which the fit starts.
        refit: whether to fit the process at all, and not only to condition it on the trials.
    """

    def __init__(
        self,
        space: Space,
        epoch: int,
        candidates: np.ndarray,
        curves: np.ndarray,
        targets: np.ndarray,
        other_values: np.ndarray,
        parameters: Sequence[float] | None = None,
        refit: bool = True,
    ) -> None:
        self.epoch = epoch
        self._transform = AccuracyTransform.fit(np.concatenate([curves[:, epoch - 1], other_values]))
        covariates = self._covariates(curves)
        self.process = GaussianProcess(space, covariates.shape[1], parameters)
        self.process.fit(candidates, targets, covariates=covariates, optimize=refit)
        self.left_out = self.process.leave_one_out()
        errors = (targets - self.left_out.mean) / self.left_out.std
        self._scale = (1 + _CAUTION / len(targets)) * math.sqrt(max(1.0, float(np.mean(errors**2))))

    def forecast(self, candidates: np.ndarray, curves: np.ndarray) -> ValuePrediction:
        """Forecast transformed values after the last epoch, (N,); deviations include the noise of a measurement.

        `curves` are the values after the first epochs, (N, epochs), at least those of this forecaster.
        """
        prediction = self.process.predict(candidates, self._covariates(curves))
        std = np.hypot(prediction.std, self.process.noise_std)
        return ValuePrediction(prediction.mean, self._scale * std)

    def leave_one_out(self) -> ValuePrediction:
        """Forecast each of the trials that ran to the end from all others."""
        return ValuePrediction(self.left_out.mean, self._scale * self.left_out.std)

    def _covariates(self, curves: np.ndarray) -> np.ndarray:
        """Return the value now, and how much it has grown since half the epochs, (N, 2)."""
        now = self._transform.transform(curves[:, self.epoch - 1])
        before = self._transform.transform(curves[:, max(1, self.epoch // 2) - 1])
        return np.stack([now, now - before], 1)
