"""The pool of candidates: quasi-Monte-Carlo samples of the space that meet the constraints (Algorithm 1, stage 1)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from fbnetv3.errors import UsageError
from fbnetv3.nars.constraints import ConstraintError, Constraints
from fbnetv3.nars.space import Space

# Of so many samples in a row without one that meets the constraints, the search for them ends.
_PATIENCE = 2**21
_BATCH = 2**14


def sobol(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Samples of the whole space by a scrambled Sobol sequence, integers (count, variables); some may be equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance for counts that are no power of two
        points = qmc.Sobol(len(space), seed=seed).random(count)
    return np.minimum((points * space.sizes).astype(np.int64), space.sizes - 1)


def sample_pool(constraints: Constraints, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Distinct candidates that meet the constraints, in the order of the Sobol sequence.

    Fewer than `count` where the space has no more of them to be found.

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sequence = qmc.Sobol(len(space), seed=seed)
        found: dict[bytes, np.ndarray] = {}
        fruitless = 0
        while len(found) < count and fruitless < _PATIENCE:
            points = sequence.random(_BATCH)
            batch = np.minimum((points * space.sizes).astype(np.int64), space.sizes - 1)
            before = len(found)
            for candidate in batch[constraints.met(batch)]:
                found.setdefault(candidate.tobytes(), candidate)
            fruitless = 0 if len(found) > before else fruitless + _BATCH
    if not found:
        raise ConstraintError(
            f"of {_PATIENCE:,} samples of {space.name} none meets {', '.join(map(str, constraints.constraints))}: "
            "widen the bounds"
        )
    return np.array(list(found.values())[:count])


def _of_all(constraints: Constraints, count: int, seed: int) -> np.ndarray:
    """The same from a space that is small enough to list, in random order."""
    sizes = constraints.space.sizes
    everything = np.stack(np.unravel_index(np.arange(constraints.space.size()), sizes), 1)
    everything = everything[np.random.default_rng(seed).permutation(len(everything))]
    return everything[constraints.met(everything)][:count]
