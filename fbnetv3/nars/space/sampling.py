"""Samples of candidates: random ones, and quasi-random ones that meet the constraints (Algorithm 1, stage 1)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_int

# The first and the largest batch of samples; each batch is twice as large as the one before
_FIRST_BATCH = 2**8
_MAX_BATCH = 2**14
# Number of samples after which the share of feasible ones decides whether to continue, and the maximum
_FIRST_SAMPLES = 2**17
_MAX_SAMPLES = 2**21
# If too few are feasible: random candidates to repair, and steps without a new candidate before giving up
_NUM_REPAIRED = 256
_MAX_IDLE_STEPS = 50


def random_candidates(space: Space, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw canonical candidates, int64 (count, variables), uniform in the coordinates of `Space.positions`."""
    return space.from_unit(rng.random((count, len(space))))


def sample_sobol(space: Space, count: int, seed: int = 0) -> np.ndarray:
    """Sample a space with a scrambled Sobol sequence: int64 (count, variables), canonical, possibly with duplicates."""
    return _draw(space, qmc.Sobol(len(space), seed=seed), count)


def _draw(space: Space, sequence: qmc.Sobol, count: int) -> np.ndarray:
    """Return the next candidates of a sequence, int64 (count, variables)."""
    with warnings.catch_warnings():
        # Counts that are not a power of two lack perfect balance
        warnings.simplefilter("ignore", UserWarning)
        return space.from_unit(sequence.random(count))


def sample_pool(constraints: Constraints, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Sample distinct feasible candidates, canonical, int64 (N, variables).

    They are those of `sample_quasi_random`, or in random order if the space is small enough to list all of it.

    Raises:
        ConstraintError: no feasible candidate was found.
    """
    check_int(count, "count", 1)
    space = constraints.space
    is_discrete = not any(variable.is_continuous for variable in space.variables)
    if is_discrete and space.num_candidates() <= 4 * max(count, _MAX_BATCH):
        constraints.find_feasible(seed)
        candidates = np.random.default_rng(seed).permutation(list_candidates(space))
        return candidates[constraints.feasible(candidates)][:count]
    return sample_quasi_random(constraints, count, seed)


def sample_quasi_random(constraints: Constraints, count: int, seed: int = 0) -> np.ndarray:
    """Sample distinct feasible candidates in quasi-random order, canonical, int64 (N, variables).

    They are the first feasible ones of a scrambled Sobol sequence. If these are too few, random candidates that were
    repaired and their feasible neighbors follow. There are less than `count` if no more candidates are found.

    Raises:
        ConstraintError: no feasible candidate was found.
    """
    check_int(count, "count", 1)
    space = constraints.space
    feasible = constraints.find_feasible(seed)
    count = min(count, space.num_candidates())
    # Candidates by their bytes, to find duplicates
    samples: dict[bytes, np.ndarray] = {}
    sequence = qmc.Sobol(len(space), seed=seed)
    num_drawn = 0
    # Continue past the first samples only if there would be enough before the limit at the present rate
    while len(samples) < count:
        if num_drawn >= _FIRST_SAMPLES and num_drawn * count >= len(samples) * _MAX_SAMPLES:
            break
        batch = _draw(space, sequence, min(max(num_drawn, _FIRST_BATCH), _MAX_BATCH))
        num_drawn += len(batch)
        _add(samples, batch[constraints.feasible(batch)])
    if len(samples) < count:
        _add_neighbors(samples, feasible, constraints, count, seed)
    return np.array(list(samples.values())[:count])


def list_candidates(space: Space) -> np.ndarray:
    """Return all candidates of a small space, canonical and in lexicographic order, int64 (N, variables)."""
    candidates = np.zeros((1, len(space)), np.int64)
    for column, size in enumerate(space.sizes):
        # Whether a variable is active depends only on those before it
        counts = np.where(space.active(candidates)[:, column], size, 1)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        candidates = np.repeat(candidates, counts, 0)
        candidates[:, column] = np.arange(len(candidates)) - starts
    return candidates


def _add(samples: dict[bytes, np.ndarray], candidates: np.ndarray) -> None:
    """Add candidates that are not among the samples."""
    for candidate in candidates:
        samples.setdefault(candidate.tobytes(), candidate)


def _add_neighbors(
    samples: dict[bytes, np.ndarray],
    feasible: np.ndarray,
    constraints: Constraints,
    count: int,
    seed: int,
) -> None:
    """Add repaired random candidates, or else a feasible one, and neighbors of the samples until there are `count`."""
    rng = np.random.default_rng(seed)
    space = constraints.space
    repaired, violation = constraints.repair(random_candidates(space, _NUM_REPAIRED, rng), rng)
    _add(samples, repaired[violation == 0])
    if not samples:
        _add(samples, feasible[None])
    idle = 0
    while len(samples) < count and idle < _MAX_IDLE_STEPS:
        size_before = len(samples)
        members = np.array(list(samples.values()))
        members = members[rng.integers(len(members), size=1024)]
        neighbors = members.copy()
        random = space.indices_from_unit(rng.random(members.shape))
        # Change one or two variables: one can pay for the other
        for probability in (1.0, 0.7):
            rows = np.flatnonzero(rng.random(len(neighbors)) < probability)
            columns = rng.integers(len(space), size=len(rows))
            neighbors[rows, columns] = random[rows, columns]
        neighbors = space.complete_changes(members, neighbors, rng)
        _add(samples, neighbors[constraints.feasible(neighbors)])
        idle = 0 if len(samples) > size_before else idle + 1
