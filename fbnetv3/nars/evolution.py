"""Evolution over a predictor's scores: an adaptive genetic algorithm inside constraints (Sec. 3.4).

The rates of crossover and mutation follow M. Srinivas and L. M. Patnaik, "Adaptive probabilities of crossover and
mutation in genetic algorithms", IEEE Transactions on Systems, Man and Cybernetics 24(4), 1994: good candidates are
disturbed little, others much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.constraints import Constraint, ConstraintError, Constraints
from fbnetv3.nars.sampling import sample_pool

# Scores of candidates, (N,), the higher the better.
Score = Callable[[np.ndarray], np.ndarray]

# The paper's k1 to k4: crossover and mutation of what is better than the average, and of what is not.
_CROSSOVER, _MUTATION = 1.0, 0.5


@dataclass(frozen=True)
class EvolutionSettings:
    """How an evolution runs. Only epsilon is the paper's; the rest is chosen here.

    Attributes:
        inherited: best trials that the first generation takes over (p).
        random: random candidates beside them (q).
        top: candidates that a generation keeps (K).
        children: children of each of them.
        epsilon: least gain of the best score that counts as one.
        patience: generations without gain before the end.
        neighbours: of the best in two variables, tried with all in one before the end; a gain lets it go on. 0: none.
        generations: most of them.
    """

    inherited: int = 50
    random: int = 200
    top: int = 100
    children: int = 20
    epsilon: float = 1e-6
    patience: int = 5
    neighbours: int = 12_000
    generations: int = 200

    def __post_init__(self) -> None:
        for name, least in (
            ("inherited", 0),
            ("random", 1),
            ("top", 2),
            ("children", 1),
            ("patience", 1),
            ("neighbours", 0),
            ("generations", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"evolution: {name} {getattr(self, name)} is less than {least}")


@dataclass(frozen=True)
class Evolved:
    """What an evolution came to.

    Attributes:
        candidates: the last generation's best, integers (K, variables), best first; each meets the constraints.
        scores: of each, (K,).
        best: the best score after each generation.
        calls: candidates that were scored, each once.
    """

    candidates: np.ndarray
    scores: np.ndarray
    best: tuple[float, ...]
    calls: int


def evolve(
    score: Score,
    constraints: Constraints,
    inherited: np.ndarray | None = None,
    settings: EvolutionSettings = EvolutionSettings(),
    seed: int = 0,
) -> Evolved:
    """Search for the candidates with the highest scores that meet the constraints.

    Args:
        score: such as a `Predictor`.
        constraints: what every candidate has to meet, and the space.
        inherited: candidates to begin with, best first; those that do not meet the constraints are left out.
        settings: sizes and the end.
        seed: of all chances.

    Raises:
        ConstraintError: nothing meets the constraints; the text says what can be attained.
    """
    rng, seen = np.random.default_rng(seed), set()
    first = sample_pool(constraints, settings.random, seed)
    if inherited is not None and len(inherited):
        inherited = constraints.space.check(inherited)
        first = np.concatenate([inherited[constraints.met(inherited)][: settings.inherited], first])
    alive = _unseen(first, seen)
    scores, calls = _scored(score, alive), len(alive)
    best, idle = [float(scores.max())], 0
    last = settings.patience + (1 if settings.neighbours else 0)
    while len(best) <= settings.generations and idle < last:
        order = np.argsort(-scores, kind="stable")[: settings.top]
        alive, scores = alive[order], scores[order]
        if idle < settings.patience:
            children = _children(alive, scores, constraints.space.sizes, settings.children, rng)
        else:  # before it ends: what lies beside the best, where a gain of one variable may pay for another
            children = _neighbours(alive[0], constraints.space.sizes, settings.neighbours, rng)
        children = _unseen(children, seen)
        children = children[constraints.met(children)] if len(children) else children
        if len(children):
            alive = np.concatenate([alive, children])
            scores = np.concatenate([scores, _scored(score, children)])
            calls += len(children)
        gain = float(scores.max()) - best[-1]
        idle = 0 if gain > settings.epsilon else idle + 1
        best.append(float(scores.max()))
    order = np.argsort(-scores, kind="stable")[: settings.top]
    return Evolved(alive[order], scores[order], tuple(best), calls)


def _scored(score: Score, candidates: np.ndarray) -> np.ndarray:
    found = np.asarray(score(candidates), np.float64)
    if found.shape != (len(candidates),) or np.isnan(found).any():
        raise UsageError(f"the score gives {found.shape} with {int(np.isnan(found).sum())} that are no number")
    return found


def _unseen(candidates: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Those that have not come up before, each once; they have come up then."""
    fresh = []
    for index, candidate in enumerate(candidates):
        key = candidate.tobytes()
        if key not in seen:
            seen.add(key)
            fresh.append(index)
    return candidates[fresh]


def _children(
    parents: np.ndarray, scores: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Children of every parent, by crossover with another and by mutation, at rates that adapt to their fitness."""
    first = np.repeat(np.arange(len(parents)), count)
    second = rng.integers(len(parents), size=len(first))
    top, mean = scores.max(), scores.mean()
    spread = max(top - mean, 1e-12)

    def rate(fitness: np.ndarray, most: float) -> np.ndarray:
        return np.where(fitness >= mean, most * (top - fitness) / spread, most)

    crossed = rng.random(len(first)) < rate(np.maximum(scores[first], scores[second]), _CROSSOVER)
    mixed = (rng.random((len(first), len(sizes))) < 0.5) & crossed[:, None]
    children = np.where(mixed, parents[second], parents[first])
    # at least one variable of each child changes in the mean, so that the best one has neighbours too
    mutation = np.maximum(rate(scores[first], _MUTATION), 1 / len(sizes))
    changed = rng.random(children.shape) < mutation[:, None] * rng.random((len(first), 1))
    changed[np.arange(len(first)), rng.integers(len(sizes), size=len(first))] |= ~crossed
    near = children + rng.choice([-1, 1], children.shape)
    anywhere = rng.integers(0, sizes, children.shape)
    mutated = np.where(rng.random(children.shape) < 0.5, near, anywhere) % sizes
    return np.where(changed, mutated, children)


def _neighbours(best: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Candidates that differ from the best in one variable, all of them, and others that differ in two."""
    columns = np.repeat(np.arange(len(sizes)), sizes)
    values = np.concatenate([np.arange(size) for size in sizes])
    single = np.repeat(best[None], len(columns), 0)
    single[np.arange(len(columns)), columns] = values
    double = np.repeat(best[None], count, 0)
    for move in rng.integers(len(columns), size=(2, count)):
        double[np.arange(count), columns[move]] = values[move]
    return np.concatenate([single, double])


def pareto_front(
    score: Score,
    constraints: Constraints,
    column: str,
    inherited: np.ndarray | None = None,
    steps: int = 16,
    settings: EvolutionSettings = EvolutionSettings(),
    seed: int = 0,
) -> Evolved:
    """The candidates that no other beats in both score and a column, cheapest first.

    An evolution for each of `steps` budgets between the least and the most that the column can be; each takes over what
    the one before has found.

    Args:
        score: such as a `Predictor`.
        constraints: what every candidate has to meet besides.
        column: what should be small, such as "macs".
        inherited: candidates to begin with.
        steps: how many budgets.
        settings: of each evolution.
        seed: of all chances.
    """
    pool = sample_pool(constraints, 1000, seed)
    values = constraints.values(pool, column)[column]
    found, calls, best = [] if inherited is None else [inherited], 0, []
    for number, budget in enumerate(np.linspace(values.min(), values.max(), steps)):
        within = constraints.with_bounds(Constraint(column, high=float(budget)))
        start = np.concatenate(found) if found else None
        try:
            result = evolve(score, within, start, settings, seed + number)
        except ConstraintError:  # so little that hardly any candidate has it
            continue
        found.append(result.candidates)
        calls, best = calls + result.calls, [*best, result.best[-1]]
    candidates = np.unique(np.concatenate(found), axis=0)
    candidates = candidates[constraints.met(candidates)]
    scores, costs = _scored(score, candidates), constraints.values(candidates, column)[column]
    order = np.lexsort((-scores, costs))
    front, highest = [], -np.inf
    for index in order:
        if scores[index] > highest:
            front.append(index)
            highest = scores[index]
    return Evolved(candidates[front], scores[front], tuple(best), calls)
