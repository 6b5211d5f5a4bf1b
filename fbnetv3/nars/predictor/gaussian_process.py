"""Gaussian process regression on candidates, suited to a few dozen noisy trials.

The equations are those of C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006:
(2.25) for the mean, (5.8) for the likelihood that chooses the kernel, (5.12) for leave-one-out predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Means of the normal priors on the logarithms of the kernel's parameters: variances, squared length scales
# (times two) and noise
_PRIOR_MEANS = {
    "linear arch": -2.0,
    "linear recipe": -2.0,
    "arch": -1.5,
    "recipe": -1.5,
    "joint": -2.0,
    "embedded": -1.5,
    "constant": -2.0,
    "squared length arch": 0.0,
    "squared length recipe": 0.0,
    "squared length joint arch": 0.0,
    "squared length joint recipe": 0.0,
    "squared length embedded": 0.0,
    "noise": -1.5,
}
# Standard deviations of the priors
_PRIOR_STD = 1.5
_NOISE_PRIOR_STD = 2.0
# Adam on the log posterior
_STEPS = 80
_LR = 0.1
_MIN_NOISE = 1e-4
# Number of candidates scored at a time, which limits the size of the kernel
_CHUNK_SIZE = 2048


class FeatureGroups(NamedTuple):
    """Features of candidates, (N, features) for each group; a group without features does not enter the kernel."""

    arch: Tensor
    recipe: Tensor
    embedded: Tensor  # embeddings by the pretrained encoders


class GaussianProcess:
    """Regression with a sum of kernels: a linear and a smooth one for each group, and one of architecture and recipe.

    The trials determine the weight and the length scale of each kernel, and the noise.
    """

    def fit(self, features: FeatureGroups, targets: Tensor) -> Tensor:
        """Choose the kernel's parameters and condition on trials, whose targets, (N,), have mean 0 and deviation 1.

        Return leave-one-out predictions, of each trial from all others, float64 (N,).
        """
        self._center = features.embedded.mean(0)
        self._scale = (features.embedded - self._center).square().mean(0).sqrt().clamp_min(1e-6)
        self._trials = self._normalize(features)
        targets = targets.double()
        products = self._products(self._trials)
        identity = torch.eye(len(targets), dtype=torch.float64)

        log_parameters = {
            name: torch.tensor(mean, dtype=torch.float64, requires_grad=True)
            for name, mean in _PRIOR_MEANS.items()
        }

        def covariance() -> Tensor:
            noise = log_parameters["noise"].exp() + _MIN_NOISE
            return self._kernel(products, log_parameters) + noise * identity

        # Maximize the posterior of the kernel's parameters
        optimizer = torch.optim.Adam(log_parameters.values(), _LR)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            # Negative log marginal likelihood without its constant: y' K^-1 y / 2 + log det(K) / 2, with K = L L' and
            # log det(K) / 2 = sum of log diag(L)
            factor = torch.linalg.cholesky(covariance())
            solved = torch.cholesky_solve(targets[:, None], factor)[:, 0]
            loss = 0.5 * targets @ solved + factor.diagonal().log().sum()
            for name, mean in _PRIOR_MEANS.items():
                std = _NOISE_PRIOR_STD if name == "noise" else _PRIOR_STD
                loss = loss + 0.5 * ((log_parameters[name] - mean) / std) ** 2
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            inverse = torch.linalg.inv(covariance())
            # The mean at new candidates is k(x, trials) K^-1 y
            self._weights = inverse @ targets
            self._log_parameters = {name: value.detach() for name, value in log_parameters.items()}
            # Leave-one-out mean: y_i - [K^-1 y]_i / [K^-1]_ii
            return targets - self._weights / inverse.diagonal()

    @torch.no_grad()
    def __call__(self, features: FeatureGroups) -> Tensor:
        """Predict the mean for candidates, float64 (N,)."""
        means = []
        for chunk in zip(*(group.split(_CHUNK_SIZE) for group in features), strict=True):
            products = self._products(self._normalize(FeatureGroups(*chunk)))
            means.append(self._kernel(products, self._log_parameters) @ self._weights)
        return torch.cat(means)

    def _normalize(self, features: FeatureGroups) -> FeatureGroups:
        """Standardize embeddings, and scale groups so that inner products do not grow with the number of features."""
        embedded = (features.embedded - self._center) / self._scale  # in float32: there are many
        groups = (features.arch.double(), features.recipe.double(), embedded)
        return FeatureGroups(*(group / max(1, group.shape[1]) ** 0.5 for group in groups))

    def _products(self, features: FeatureGroups) -> dict[str, tuple[Tensor, Tensor]]:
        """Return inner products and squared distances to the trials, both (N, trials), for each group with features."""
        products = {}
        for name, group, trials in zip(FeatureGroups._fields, features, self._trials, strict=True):
            if group.shape[1]:
                inner = group @ trials.T
                # |a - b|^2 = |a|^2 + |b|^2 - 2 a b
                square_norms = group.square().sum(1)[:, None] + trials.square().sum(1)
                squared_distances = (square_norms - 2 * inner).clamp_min(0)
                products[name] = inner.double(), squared_distances.double()
        return products

    @staticmethod
    def _kernel(products: dict[str, tuple[Tensor, Tensor]], log_parameters: dict[str, Tensor]) -> Tensor:
        """Return the kernel between candidates and trials, (N, trials)."""

        def squared_exponential(group: str, length: str) -> Tensor:
            _, squared_distances = products[group]
            return torch.exp(-squared_distances * torch.exp(-log_parameters[f"squared length {length}"]))

        total = log_parameters["constant"].exp()
        for group, (inner, _) in products.items():
            total = total + log_parameters[group].exp() * squared_exponential(group, group)
            if group != "embedded":
                total = total + log_parameters[f"linear {group}"].exp() * inner
        if "arch" in products and "recipe" in products:
            joint = log_parameters["joint"].exp() * squared_exponential("arch", "joint arch")
            total = total + joint * squared_exponential("recipe", "joint recipe")
        return total
