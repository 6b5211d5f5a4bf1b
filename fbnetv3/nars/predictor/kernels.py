"""Kernels between candidates: one for each variable, and their sum, products of pairs, and product.

A variable's kernel compares its values alone: Matern-5/2 on `Space.positions` for numbers, an exponential of whether
they differ for categories (C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, eq.
4.17 and 4.18). The additive, pairwise and full combinations follow D. Duvenaud, H. Nickisch and C. E. Rasmussen,
"Additive Gaussian Processes", NIPS 2011: additive structure generalizes from few trials, the product can represent any
interaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fbnetv3.nars.space.search_space import Space

# Distance between an inactive number and an active one at the center of its range
_INACTIVE_DISTANCE = 0.5
_CENTER = 0.5
_INACTIVE_CATEGORY = -1.0
_SQRT5 = 5**0.5
_MAX_LEVELS = 64  # variables with more values have only those levels that occur

NUM_TERMS = 3
"""Number of combinations of the variables' kernels: sum, products of pairs, product of all."""


class KernelInputs(NamedTuple):
    """What kernels compare: the distinct values of each variable, and which of them each candidate has."""

    # For each variable, positions, or indices of categories; NaN is for "inactive"
    levels: tuple[np.ndarray, ...]
    codes: np.ndarray  # index of each candidate's level, integers (variables, N)

    def split(self, size: int) -> list[KernelInputs]:
        """Return the inputs in chunks of `size` candidates."""
        starts = range(0, self.codes.shape[1], size)
        return [KernelInputs(self.levels, self.codes[:, start : start + size]) for start in starts]


def kernel_inputs(space: Space, candidates: np.ndarray) -> KernelInputs:
    """Return the kernel's inputs for candidates, integers (N, variables)."""
    candidates = space.validate(candidates)
    active = space.active(candidates)
    levels = []
    codes = np.empty(candidates.shape[::-1], np.int64)
    for index, variable in enumerate(space.variables):
        indices = candidates[:, index]
        # The levels of variables with few values are all of them; of others, only those that occur
        values = np.arange(len(variable))
        codes[index] = indices
        if len(variable) > _MAX_LEVELS:
            values, codes[index] = np.unique(indices, return_inverse=True)
        codes[index, ~active[:, index]] = len(values)
        positions = values if variable.is_categorical else variable.positions(values)
        levels.append(np.append(positions, np.nan))
    return KernelInputs(tuple(levels), codes)


def level_distances(a: KernelInputs, b: KernelInputs, is_categorical: np.ndarray) -> list[np.ndarray]:
    """Return the distances between the levels of `a` and those of `b` for each variable, (levels of a, levels of b).

    Two inactive values are at distance 0. An inactive number is next to the center of the range, off the line on which
    the active values lie; an inactive category is one more category.
    """
    return [
        _category_distances(levels_a, levels_b) if is_category else _number_distances(levels_a, levels_b)
        for levels_a, levels_b, is_category in zip(a.levels, b.levels, is_categorical, strict=True)
    ]


def _category_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (np.where(np.isnan(levels), _INACTIVE_CATEGORY, levels) for levels in (a, b))
    return (a[:, None] != b).astype(np.float64)


def _number_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    offsets = _INACTIVE_DISTANCE * (np.isnan(a)[:, None] != np.isnan(b))
    a, b = (np.where(np.isnan(levels), _CENTER, levels) for levels in (a, b))
    return np.hypot(a[:, None] - b, offsets)


def level_kernels(
    distances: Sequence[np.ndarray], length_scales: np.ndarray, is_categorical: np.ndarray
) -> list[np.ndarray]:
    """Return the kernels of variables between their levels, given the distances."""
    tables = zip(distances, length_scales, is_categorical, strict=True)
    return [_level_kernel(table / scale, is_category) for table, scale, is_category in tables]


def level_derivatives(
    distances: Sequence[np.ndarray], length_scales: np.ndarray, is_categorical: np.ndarray
) -> list[np.ndarray]:
    """Return the derivatives of `level_kernels` by the logarithms of the length scales."""
    tables = zip(distances, length_scales, is_categorical, strict=True)
    return [_level_derivative(table / scale, is_category) for table, scale, is_category in tables]


def look_up(tables: Sequence[np.ndarray], a: KernelInputs, b: KernelInputs) -> np.ndarray:
    """Return the entries of each variable's table for pairs of candidates of `a` and `b`, (variables, N, M)."""
    entries = np.empty((len(tables), a.codes.shape[1], b.codes.shape[1]))
    for variable, table in enumerate(tables):
        entries[variable] = table[a.codes[variable]][:, b.codes[variable]]
    return entries


def _level_kernel(ratio: np.ndarray, is_category: bool) -> np.ndarray:
    if is_category:
        return np.exp(-ratio)
    root = _SQRT5 * ratio
    return (1 + root + root * root / 3) * np.exp(-root)


def _level_derivative(ratio: np.ndarray, is_category: bool) -> np.ndarray:
    """Return the derivative of the kernel by the logarithm of the length scale."""
    if is_category:
        return ratio * np.exp(-ratio)
    root = _SQRT5 * ratio
    return root * root / 3 * (1 + root) * np.exp(-root)


class KernelTerms(NamedTuple):
    """Combinations of the variables' kernels, (N, M) each, all 1 between a candidate and itself."""

    total: np.ndarray  # sum of the variables' kernels, not scaled
    mean: np.ndarray  # mean of the variables' kernels
    pairs: np.ndarray  # mean of the products of two of them; 0 if there is only one variable
    product: np.ndarray  # product of all

    @property
    def combinations(self) -> tuple[np.ndarray, ...]:
        """The `NUM_TERMS` terms of the kernel."""
        return self.mean, self.pairs, self.product


def combine_kernels(kernels: np.ndarray) -> KernelTerms:
    """Combine the kernels of the variables, (variables, N, M)."""
    num_variables = len(kernels)
    total = kernels.sum(0)
    pairs = np.zeros_like(total)
    if num_variables > 1:
        squares = np.einsum("vnm,vnm->nm", kernels, kernels)
        pairs = (total * total - squares) / (num_variables * (num_variables - 1))
    return KernelTerms(total, total / num_variables, pairs, kernels.prod(0))


def length_scale_gradients(
    outer: np.ndarray,
    kernels: np.ndarray,
    terms: KernelTerms,
    variances: np.ndarray,
    derivatives: np.ndarray,
) -> np.ndarray:
    """Return the sum of `outer` times the kernel's derivative by the logarithm of each length scale, (variables,).

    The arguments are a matrix (N, N), the variables' kernels, the terms with their variances, and the derivatives of
    the variables' kernels.
    """
    num_variables = len(kernels)
    num_pairs = max(num_variables * (num_variables - 1), 1)
    shared = outer * (variances[0] / num_variables + 2 * variances[1] / num_pairs * terms.total)
    of_pairs = outer * (2 * variances[1] / num_pairs)
    of_product = outer * terms.product * variances[2]
    sums = [
        np.vdot(shared - of_pairs * kernel + of_product / np.maximum(kernel, 1e-200), derivative)
        for kernel, derivative in zip(kernels, derivatives, strict=True)
    ]
    return np.array(sums)
