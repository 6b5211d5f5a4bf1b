"""A Gaussian process over candidates: what a few dozen noisy trials support, and no more than that.

Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006: (2.25) for the mean, (5.8) for the likelihood
that chooses the kernel, (5.12) for the predictions of what is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logarithms of the kernel's parameters before any data, and how far they are expected from it (a normal prior).
_VARIANCES = {
    "linear arch": -2.0,
    "linear recipe": -2.0,
    "arch": -1.5,
    "recipe": -1.5,
    "joint": -2.0,
    "embedded": -1.5,
    "constant": -2.0,
}
_LENGTHS = {"arch": 0.0, "recipe": 0.0, "joint arch": 0.0, "joint recipe": 0.0, "embedded": 0.0}
_NOISE = -1.5
_SPREAD, _SPREAD_OF_NOISE = 1.5, 2.0
_STEPS, _RATE = 80, 0.1
_LEAST_NOISE = 1e-4
# Candidates that are scored at a time, for memory's sake.
_CHUNK = 2048


class Inputs(NamedTuple):
    """Candidates as a predictor sees them, each part (N, features); one without features is left out of the kernel."""

    arch: Tensor
    recipe: Tensor
    embedded: Tensor

    def rows(self, chosen: slice) -> Inputs:
        return Inputs(*(part[chosen] for part in self))


class GaussianProcess:
    """Regression by a sum of kernels: linear and smooth ones of each part, and one of architecture and recipe together.

    How much each matters, and how large the noise is, follows from the trials themselves.
    """

    def fit(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Choose the kernel and condition on trials.

        Args:
            inputs: of the trials, any float type.
            targets: (N,), with mean 0 and deviation 1.

        Returns:
            What is predicted of each trial from all the others, float64 (N,).
        """
        self._centre = inputs.embedded.mean(0)
        self._scale = (inputs.embedded - self._centre).square().mean(0).sqrt().clamp_min(1e-6)
        self._inputs, targets = self._prepared(inputs), targets.double()
        products = self._products(self._inputs)
        identity = torch.eye(len(targets), dtype=torch.float64)
        prior: dict[Any, float] = {("variance", k): v for k, v in _VARIANCES.items()}
        prior |= {("length", k): v for k, v in _LENGTHS.items()}
        prior["noise"] = _NOISE
        logs = {key: torch.tensor(value, dtype=torch.float64, requires_grad=True) for key, value in prior.items()}

        def covariance() -> Tensor:
            return self._kernel(products, logs) + (logs["noise"].exp() + _LEAST_NOISE) * identity

        optimizer = torch.optim.Adam(logs.values(), _RATE)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            factor = torch.linalg.cholesky(covariance())
            solved = torch.cholesky_solve(targets[:, None], factor)[:, 0]
            loss = 0.5 * targets @ solved + factor.diagonal().log().sum()
            for key, value in prior.items():
                spread = _SPREAD_OF_NOISE if key == "noise" else _SPREAD
                loss = loss + 0.5 * ((logs[key] - value) / spread) ** 2
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            inverse = torch.linalg.inv(covariance())
            self._weights = inverse @ targets
            self._logs = {key: value.detach() for key, value in logs.items()}
            return targets - self._weights / inverse.diagonal()

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        """The mean of the prediction for candidates, float64 (N,)."""
        chunks = []
        for start in range(0, len(inputs.arch), _CHUNK):
            products = self._products(self._prepared(inputs.rows(slice(start, start + _CHUNK))))
            chunks.append(self._kernel(products, self._logs) @ self._weights)
        return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.float64)

    def _prepared(self, inputs: Inputs) -> Inputs:
        """Features, embeddings in float32; products of each part do not grow with the number of its features."""
        arch, recipe = inputs.arch.double(), inputs.recipe.double()
        embedded = (inputs.embedded - self._centre) / self._scale
        return Inputs(*(part / max(1, part.shape[1]) ** 0.5 for part in (arch, recipe, embedded)))

    def _products(self, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Inner products and squared distances to the trials, (N, trials) each, of every part that there is."""
        found = {}
        for name, ours, trials in zip(Inputs._fields, inputs, self._inputs, strict=True):
            if ours.shape[1]:
                product = ours @ trials.T
                lengths = ours.square().sum(1)[:, None] + trials.square().sum(1)
                found[name] = product.double(), (lengths - 2 * product).clamp_min(0).double()
        return found

    @staticmethod
    def _kernel(products: Mapping[str, tuple[Tensor, Tensor]], logs: Mapping) -> Tensor:
        variance = {name: logs["variance", name].exp() for name in _VARIANCES}

        def smooth(part: str, length: str) -> Tensor:
            return torch.exp(-products[part][1] * torch.exp(-logs["length", length]))

        total = variance["constant"]
        for part in products:
            total = total + variance[part] * smooth(part, part)
            if part != "embedded":
                total = total + variance[f"linear {part}"] * products[part][0]
        if "arch" in products and "recipe" in products:
            total = total + variance["joint"] * smooth("arch", "joint arch") * smooth("recipe", "joint recipe")
        return total
