"""The pool of candidates: quasi-Monte-Carlo samples of the space that meet the constraints (Algorithm 1, stage 1)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from fbnetv3.errors import UsageError
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space

_BATCH = 2**14
# Most samples of the whole space; and how many come first, after which it is known how many are worth it.
_MOST, _FIRST = 2**21, 2**17
# Candidates that are moved inside the constraints where samples are not, and steps from them without a new one that
# end the search for more.
_STARTS, _PATIENCE = 256, 50


def sobol(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Samples of the whole space by a scrambled Sobol sequence, integers (count, variables); some may be equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance for counts that are no power of two
        points = qmc.Sobol(len(space), seed=seed).random(count)
    return np.minimum((points * space.sizes).astype(np.int64), space.sizes - 1)


def sample_pool(constraints: Constraints, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Distinct candidates that meet the constraints, in the order of the Sobol sequence.

    Where hardly any sample does, others are moved inside the constraints, and what lies beside them is added. Fewer
    than `count` where the space has no more of them to be found.

    Args:
        constraints: what they have to meet, and the space.
        count: how many.
        seed: of the sequence.

    Returns:
        Integers (N, variables).

    Raises:
        ConstraintError: no candidate meets the constraints; the text says what can be attained.
    """
    if count < 1:
        raise UsageError(f"a pool of {count} candidates: at least 1 is wanted")
    space = constraints.space
    constraints.check_attainable(seed)
    if space.size() <= 4 * max(count, _BATCH):
        return _of_all(constraints, count, seed)
    found: dict[bytes, np.ndarray] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sequence, drawn = qmc.Sobol(len(space), seed=seed), 0
        # where the constraints are narrow, samples of the whole space hardly ever meet them
        while len(found) < count and (drawn < _FIRST or drawn * count < len(found) * _MOST):
            batch = np.minimum((sequence.random(_BATCH) * space.sizes).astype(np.int64), space.sizes - 1)
            drawn += _BATCH
            _add(found, batch[constraints.met(batch)])
    if len(found) < count:
        _add_neighbours(found, constraints, count, seed)
    return np.array(list(found.values())[:count])


def _add(found: dict[bytes, np.ndarray], candidates: np.ndarray) -> None:
    for candidate in candidates:
        found.setdefault(candidate.tobytes(), candidate)


def _add_neighbours(found: dict[bytes, np.ndarray], constraints: Constraints, count: int, seed: int) -> None:
    """Add candidates that are moved inside the constraints, and what lies beside those that are inside."""
    rng, sizes = np.random.default_rng(seed), constraints.space.sizes
    moved, distance = constraints.repaired(rng.integers(0, sizes, (_STARTS, len(sizes))), rng)
    _add(found, moved[distance == 0])
    if not found:  # the attainable one, which `check_attainable` has found
        _add(found, constraints.nearest(seed)[0][None])
    idle = 0
    while len(found) < count and idle < _PATIENCE:
        before = len(found)
        inside = np.array(list(found.values()))
        beside = inside[rng.integers(len(inside), size=1024)]
        # one or two variables change, so that a gain of one can pay for the other
        for times in (1.0, 0.7):
            rows = np.flatnonzero(rng.random(len(beside)) < times)
            columns = rng.integers(len(sizes), size=len(rows))
            beside[rows, columns] = rng.integers(0, sizes[columns])
        _add(found, beside[constraints.met(beside)])
        idle = 0 if len(found) > before else idle + 1


def _of_all(constraints: Constraints, count: int, seed: int) -> np.ndarray:
    """The same from a space that is small enough to list, in random order."""
    sizes = constraints.space.sizes
    everything = np.stack(np.unravel_index(np.arange(constraints.space.size()), sizes), 1)
    everything = everything[np.random.default_rng(seed).permutation(len(everything))]
    return everything[constraints.met(everything)][:count]
