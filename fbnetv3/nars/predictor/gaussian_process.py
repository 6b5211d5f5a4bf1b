"""Gaussian process regression on candidates: all variables of a joint space, refitted whenever a trial ends.

The equations are those of C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006:
(2.25) and (2.26) for mean and variance, (5.8) and (5.9) for the likelihood and its gradient, (5.12) for leave-one-out
predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from fbnetv3.nars.predictor.kernels import (
    NUM_TERMS,
    KernelInputs,
    combine_kernels,
    kernel_inputs,
    length_scale_gradients,
    level_derivatives,
    level_distances,
    level_kernels,
    look_up,
)
from fbnetv3.nars.space.search_space import Space

# Means and standard deviations of the normal priors on the logarithms of length scales, variances and noise variance,
# and on the constant and the weights of the mean. With more variables, each matters less: length scales grow with the
# square root of their number.
_VARIANCE_PRIOR = (-1.0, 1.5)
_NOISE_PRIOR = (-5.0, 2.0)
_CONSTANT_PRIOR = (0.0, 1.0)
_WEIGHT_PRIOR = (0.0, 1.0)
_LENGTH_SCALE_STD = 1.0
_FEW_VARIABLES = 4  # with so many, length scales of 1 are expected
_MAX_DEVIATIONS = 4  # bounds of the parameters, in standard deviations of their priors
_MIN_NOISE = 1e-6
# Iterations of the optimizer: of the first fit, and of those that start from the fit of a trial before
_FIRST_STEPS = 40
_LATER_STEPS = 12
_TOLERANCE = 1e-4  # relative gain of the log posterior below which a fit ends
_CHUNK_SIZE = 512  # candidates predicted at a time
_MIN_VARIANCE = 1e-9


class ValuePrediction(NamedTuple):
    """Posterior of candidates' values, without the noise of a measurement."""

    mean: np.ndarray  # (N,)
    std: np.ndarray  # (N,)


class GaussianProcess:
    """Regression with the kernel of `fbnetv3.nars.predictor.kernels` and a linear mean of `num_covariates` covariates.

    Attributes:
        parameters: logarithms of the length scales, variances and noise variance, then the constant and the weights of
            the covariates; the next fit starts from them.
    """

    def __init__(
        self, space: Space, num_covariates: int = 0, parameters: Sequence[float] | np.ndarray | None = None
    ) -> None:
        self.space = space
        self.num_covariates = num_covariates
        num_variables = len(space)
        length_scale_mean = 0.5 * math.log(num_variables / _FEW_VARIABLES)
        priors = [
            *[(length_scale_mean, _LENGTH_SCALE_STD)] * num_variables,
            *[_VARIANCE_PRIOR] * NUM_TERMS,
            _NOISE_PRIOR,
            _CONSTANT_PRIOR,
            *[_WEIGHT_PRIOR] * num_covariates,
        ]
        self._prior_mean, self._prior_std = np.array(priors).T
        self._is_first_fit = parameters is None
        self.parameters = (
            self._prior_mean.copy() if parameters is None else np.asarray(parameters, np.float64)
        )

    def fit(
        self,
        candidates: np.ndarray,
        targets: np.ndarray,
        noise: np.ndarray | None = None,
        covariates: np.ndarray | None = None,
        optimize: bool = True,
    ) -> None:
        """Choose the parameters with the highest posterior density, and condition on the targets.

        Args:
            candidates: integers (N, variables).
            targets: their values, (N,), with about mean 0 and deviation 1.
            noise: additional noise variance of each target, (N,); default: none.
            covariates: (N, num_covariates).
            optimize: whether to choose parameters; otherwise, the present ones stay.
        """
        self._set_data(candidates, targets, noise, covariates)
        if optimize:
            self._optimize()
        self._condition()

    def _optimize(self) -> None:
        limit = _MAX_DEVIATIONS * self._prior_std
        result = minimize(
            self._negative_log_posterior,
            self.parameters,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(self._prior_mean - limit, self._prior_mean + limit, strict=True)),
            options={
                "maxiter": _FIRST_STEPS if self._is_first_fit else _LATER_STEPS,
                "maxls": 10,
                "ftol": _TOLERANCE,
            },
        )
        self.parameters = result.x
        self._is_first_fit = False

    def perturbed(self, deviation: float, rng: np.random.Generator) -> GaussianProcess:
        """Return a process on the same targets whose log length scales differ by normal noise: another hypothesis."""
        other = GaussianProcess(self.space, self.num_covariates, self.parameters)
        other.parameters = self.parameters.copy()
        other.parameters[: len(self.space)] += rng.normal(0, deviation, len(self.space))
        other._data = self._data
        other._distances = self._distances
        other._condition()
        return other

    def predict(self, candidates: np.ndarray, covariates: np.ndarray | None = None) -> ValuePrediction:
        """Predict the values of candidates, integers (N, variables), given their covariates, (N, num_covariates)."""
        parameters = self._split(self.parameters)
        inputs = kernel_inputs(self.space, candidates)
        trials = self._data.inputs
        is_categorical = self.space.is_categorical
        distances = level_distances(inputs, trials, is_categorical)
        tables = level_kernels(distances, np.exp(parameters.log_length_scales), is_categorical)
        variances = np.exp(parameters.log_variances)
        means = [np.zeros(0)]
        squares = [np.zeros(0)]
        for chunk in inputs.split(_CHUNK_SIZE):
            terms = combine_kernels(look_up(tables, chunk, trials)).combinations
            kernel = sum(variance * term for variance, term in zip(variances, terms, strict=True))
            means.append(kernel @ self._weights)
            squares.append(np.square(kernel @ self._inverse_factor).sum(1))
        mean = np.concatenate(means) + parameters.constant
        if covariates is not None:
            mean = mean + covariates @ parameters.weights
        total = np.exp(parameters.log_variances) @ self._term_scales
        return ValuePrediction(mean, np.sqrt(np.maximum(total - np.concatenate(squares), _MIN_VARIANCE)))

    def leave_one_out(self) -> ValuePrediction:
        """Predict every target from all others; the deviations include the noise."""
        variances = 1 / np.diag(self._inverse)
        return ValuePrediction(self._data.targets - self._weights * variances, np.sqrt(variances))

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise of a measurement."""
        return math.exp(0.5 * self._split(self.parameters).log_noise)

    @property
    def _term_scales(self) -> np.ndarray:
        """The terms of the kernel between a candidate and itself: there are no pairs of a single variable."""
        return np.array([1.0, float(len(self.space) > 1), 1.0])

    def _set_data(
        self,
        candidates: np.ndarray,
        targets: np.ndarray,
        noise: np.ndarray | None,
        covariates: np.ndarray | None,
    ) -> None:
        count = len(targets)
        inputs = kernel_inputs(self.space, candidates)
        self._data = _Data(
            inputs,
            np.asarray(targets, np.float64),
            np.zeros(count) if noise is None else noise,
            np.zeros((count, 0)) if covariates is None else covariates,
        )
        self._distances = level_distances(inputs, inputs, self.space.is_categorical)

    def _condition(self) -> None:
        parameters = self._split(self.parameters)
        terms = combine_kernels(self._variable_kernels(parameters)).combinations
        factor = np.linalg.cholesky(self._covariance(terms, parameters))
        inverse_factor = solve_triangular(factor, np.eye(len(factor)), lower=True)
        self._inverse = inverse_factor.T @ inverse_factor
        self._weights = self._inverse @ self._residuals(parameters)
        self._inverse_factor = inverse_factor.T

    def _variable_kernels(self, parameters: _Parameters) -> np.ndarray:
        """Return the kernel of each variable between the trials, (variables, N, N)."""
        length_scales = np.exp(parameters.log_length_scales)
        tables = level_kernels(self._distances, length_scales, self.space.is_categorical)
        return look_up(tables, self._data.inputs, self._data.inputs)

    def _kernel_derivatives(self, parameters: _Parameters) -> np.ndarray:
        """Return the derivatives of these kernels by the logarithms of the length scales, (variables, N, N)."""
        length_scales = np.exp(parameters.log_length_scales)
        tables = level_derivatives(self._distances, length_scales, self.space.is_categorical)
        return look_up(tables, self._data.inputs, self._data.inputs)

    def _covariance(self, terms: Sequence[np.ndarray], parameters: _Parameters) -> np.ndarray:
        variances = np.exp(parameters.log_variances)
        covariance = sum(variance * term for variance, term in zip(variances, terms, strict=True))
        covariance[np.diag_indices(len(covariance))] += (
            math.exp(parameters.log_noise) + _MIN_NOISE + self._data.noise
        )
        return covariance

    def _residuals(self, parameters: _Parameters) -> np.ndarray:
        return self._data.targets - parameters.constant - self._data.covariates @ parameters.weights

    def _negative_log_posterior(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative log posterior density of the parameters, up to a constant, and its gradient."""
        parameters = self._split(vector)
        variances = np.exp(parameters.log_variances)
        kernels = self._variable_kernels(parameters)
        terms = combine_kernels(kernels)
        try:
            factor = np.linalg.cholesky(self._covariance(terms.combinations, parameters))
        except np.linalg.LinAlgError:  # the line search retreats from an infinite value
            return math.inf, np.zeros_like(vector)
        inverse_factor = solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False)
        inverse = inverse_factor.T @ inverse_factor
        residuals = self._residuals(parameters)
        solved = inverse @ residuals
        deviations = (vector - self._prior_mean) / self._prior_std
        value = 0.5 * (residuals @ solved + deviations @ deviations) + np.log(np.diag(factor)).sum()
        # Eq. 5.9 without its factor: the trace of `outer` times the derivative of the covariance
        outer = inverse - np.outer(solved, solved)
        gradient = deviations / self._prior_std
        traces = [
            *length_scale_gradients(outer, kernels, terms, variances, self._kernel_derivatives(parameters)),
            *(
                variance * np.vdot(outer, term)
                for variance, term in zip(variances, terms.combinations, strict=True)
            ),
            math.exp(parameters.log_noise) * np.trace(outer),
        ]
        gradient[: len(traces)] += 0.5 * np.array(traces)
        gradient[len(traces)] -= solved.sum()
        gradient[len(traces) + 1 :] -= self._data.covariates.T @ solved
        return float(value), gradient

    def _split(self, vector: np.ndarray) -> _Parameters:
        ends = np.cumsum([len(self.space), NUM_TERMS, 1, 1])
        length_scales, variances, noise, constant, weights = np.split(vector, ends)
        return _Parameters(length_scales, variances, float(noise[0]), float(constant[0]), weights)


class _Parameters(NamedTuple):
    log_length_scales: np.ndarray  # (variables,)
    log_variances: np.ndarray  # (NUM_TERMS,)
    log_noise: float  # of the variance
    constant: float
    weights: np.ndarray  # (num_covariates,)


class _Data(NamedTuple):
    inputs: KernelInputs
    targets: np.ndarray  # (N,)
    noise: np.ndarray  # variances (N,)
    covariates: np.ndarray  # (N, num_covariates)
