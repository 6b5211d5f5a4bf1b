"""The pool of candidates: quasi-Monte Carlo samples that meet the constraints (Algorithm 1, stage 1)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_int

_SOBOL_BATCH = 2**14
# Number of samples after which the share of feasible ones decides whether to continue, and the maximum
_FIRST_SAMPLES = 2**17
_MAX_SAMPLES = 2**21
# If too few are feasible: random candidates to repair, and steps without a new candidate before giving up
_NUM_REPAIRED = 256
_MAX_IDLE_STEPS = 50


def sample_sobol(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Sample a space with a scrambled Sobol sequence: integers (count, variables), possibly with duplicates."""
    return _draw(space, qmc.Sobol(len(space), seed=seed), count)


def _draw(space: Space, sequence: qmc.Sobol, count: int) -> np.ndarray:
    """Return the next candidates of a sequence, integers (count, variables)."""
    with warnings.catch_warnings():
        # Counts that are not a power of two lack perfect balance
        warnings.simplefilter("ignore", UserWarning)
        points = sequence.random(count)
    return np.minimum((points * space.sizes).astype(np.int64), space.sizes - 1)


def sample_pool(constraints: Constraints, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Sample distinct feasible candidates, integers (N, variables).

    They are in quasi-random order, or in random order if the space is small enough to list all of it. If too few
    samples are feasible, the pool is filled with random candidates that were repaired, and with their feasible
    neighbors. It is smaller than `count` if no more candidates are found.

    Raises:
        ConstraintError: no feasible candidate was found.
    """
    check_int(count, "count", 1)
    space = constraints.space
    feasible = constraints.find_feasible(seed)
    if space.num_candidates() <= 4 * max(count, _SOBOL_BATCH):
        # All candidates of a small space, in random order
        candidates = np.stack(np.unravel_index(np.arange(space.num_candidates()), space.sizes), 1)
        candidates = np.random.default_rng(seed).permutation(candidates)
        return candidates[constraints.feasible(candidates)][:count]
    # Candidates by their bytes, to find duplicates
    pool: dict[bytes, np.ndarray] = {}
    sequence = qmc.Sobol(len(space), seed=seed)
    num_drawn = 0
    # Continue past the first samples only if the pool would be full before the limit at the present rate
    while len(pool) < count:
        if num_drawn >= _FIRST_SAMPLES and num_drawn * count >= len(pool) * _MAX_SAMPLES:
            break
        batch = _draw(space, sequence, _SOBOL_BATCH)
        num_drawn += _SOBOL_BATCH
        _add(pool, batch[constraints.feasible(batch)])
    if len(pool) < count:
        _add_neighbors(pool, feasible, constraints, count, seed)
    return np.array(list(pool.values())[:count])


def _add(pool: dict[bytes, np.ndarray], candidates: np.ndarray) -> None:
    """Add candidates that the pool does not have."""
    for candidate in candidates:
        pool.setdefault(candidate.tobytes(), candidate)


def _add_neighbors(
    pool: dict[bytes, np.ndarray],
    feasible: np.ndarray,
    constraints: Constraints,
    count: int,
    seed: int,
) -> None:
    """Fill a pool with repaired random candidates, or else a feasible one, and with neighbors of its candidates."""
    rng = np.random.default_rng(seed)
    sizes = constraints.space.sizes
    starts = rng.integers(0, sizes, (_NUM_REPAIRED, len(sizes)))
    repaired, violation = constraints.repair(starts, rng)
    _add(pool, repaired[violation == 0])
    if not pool:
        _add(pool, feasible[None])
    idle = 0
    while len(pool) < count and idle < _MAX_IDLE_STEPS:
        size_before = len(pool)
        members = np.array(list(pool.values()))
        neighbors = members[rng.integers(len(members), size=1024)]
        # Change one or two variables: one can pay for the other
        for probability in (1.0, 0.7):
            rows = np.flatnonzero(rng.random(len(neighbors)) < probability)
            columns = rng.integers(len(sizes), size=len(rows))
            neighbors[rows, columns] = rng.integers(0, sizes[columns])
        _add(pool, neighbors[constraints.feasible(neighbors)])
        idle = 0 if len(pool) > size_before else idle + 1
