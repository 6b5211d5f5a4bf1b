"""Evolution over a predictor's scores: an adaptive genetic algorithm inside constraints (Sec. 3.4).

The rates of crossover and mutation follow M. Srinivas and L. M. Patnaik, "Adaptive probabilities of crossover and
mutation in genetic algorithms", IEEE Transactions on Systems, Man and Cybernetics 24(4), 1994: good candidates are
disturbed little, others much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.genetic_operators import Regression, children_of, exchanges, shocked
from fbnetv3.nars.space.constraints import Constraint, ConstraintError, Constraints
from fbnetv3.nars.space.sampling import sample_pool

# Scores of candidates, (N,), the higher the better.
Score = Callable[[np.ndarray], np.ndarray]

# Scored candidates, the best of them, to which the regression is fitted; and by how much it falls behind.
_KNOWN, _STALE = 4000, 1.1
# Exchanges that the regression looks at for each that is scored.
_LOOKED_AT = 13
# Candidates that a shock makes, and how many of them, the best, go on.
_SHOCKED, _SURVIVORS = 400, 40


@dataclass(frozen=True)
class EvolutionSettings:
    """How an evolution runs. Only epsilon is the paper's; the rest is chosen here.

    Generations end when they gain nothing; then exchanges of a few variables of the best are tried for as long as they
    gain; then the survivors are shocked, and what comes of it evolves in the same way, for a few times. Of many
    children and exchanges, those are scored that a regression on the scores so far thinks best.

    Attributes:
        inherited: best trials that the first generation takes over (p).
        random: random candidates beside them (q).
        top: candidates that a generation keeps (K).
        children: children of each of them.
        scored: of all of a generation's children, how many are scored.
        epsilon: least gain of the best score that counts as one.
        patience: generations without gain before the exchanges.
        elites: of the best, how many have exchanges tried.
        exchanges: how many of each are scored. 0: none.
        shocks: without gain before the end. 0: none.
        generations: most of them, exchanges included.
    """

    inherited: int = 50
    random: int = 1000
    top: int = 50
    children: int = 60
    scored: int = 330
    epsilon: float = 1e-6
    patience: int = 2
    elites: int = 2
    exchanges: int = 300
    shocks: int = 2
    generations: int = 500

    def __post_init__(self) -> None:
        for name, least in (
            ("inherited", 0),
            ("random", 1),
            ("top", 2),
            ("children", 1),
            ("scored", 1),
            ("patience", 1),
            ("elites", 1),
            ("exchanges", 0),
            ("shocks", 0),
            ("generations", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"evolution: {name} {getattr(self, name)} is less than {least}")
            if getattr(self, name) > 10**6:
                raise UsageError(f"evolution: {name} {getattr(self, name)} is more than a million")


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
    run = _Evolution(score, constraints, settings, seed)
    alive = run.run(inherited)
    return Evolved(alive.candidates, alive.scores, tuple(run.best), run.calls)


class _Scored(NamedTuple):
    """Candidates, integers (N, variables), and the score of each, (N,)."""

    candidates: np.ndarray
    scores: np.ndarray

    def joined(self, other: _Scored) -> _Scored:
        return _Scored(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def _best(found: _Scored, count: int) -> _Scored:
    """The best of them, best first."""
    order = np.argsort(-found.scores, kind="stable")[:count]
    return _Scored(found.candidates[order], found.scores[order])


class _Evolution:
    """A run: nothing is scored twice, and nothing that does not meet the constraints.

    Attributes:
        known: the best of what has been scored.
        best: the best score after each generation.
        calls: candidates that were scored.
    """

    def __init__(self, score: Score, constraints: Constraints, settings: EvolutionSettings, seed: int) -> None:
        self.score, self.constraints, self.settings, self.seed = score, constraints, settings, seed
        self.rng = np.random.default_rng(seed)
        self.sizes = constraints.space.sizes
        self.known = _Scored(np.zeros((0, len(self.sizes)), np.int64), np.zeros(0))
        self.best: list[float] = []
        self.calls = 0
        self._seen: set[bytes] = set()
        self._regression: Regression | None = None
        self._fitted_at = 0

    @property
    def ended(self) -> bool:
        return len(self.best) > self.settings.generations

    def run(self, inherited: np.ndarray | None) -> _Scored:
        """All of it; the last survivors, best first."""
        s = self.settings
        first = sample_pool(self.constraints, s.random, self.seed)
        if inherited is not None and len(inherited):
            inherited = self.constraints.space.check(inherited)
            first = np.concatenate([inherited[self.constraints.met(inherited)][: s.inherited], first])
        found = self.scored(self.fresh(first))
        self.best.append(float(found.scores.max()))
        alive, idle = self.improved(found), 0
        while idle < s.shocks and not self.ended:
            before = alive.scores[0]
            alive = _best(alive.joined(self.improved(self.shocked(alive))), s.top)
            idle = 0 if alive.scores[0] - before > s.epsilon else idle + 1
        return alive

    def fresh(self, candidates: np.ndarray, most: int | None = None) -> np.ndarray:
        """Those that are new and meet the constraints; if there are more than `most`, those that promise most."""
        rows = []
        for row in candidates:
            if (key := row.tobytes()) not in self._seen:
                self._seen.add(key)
                rows.append(row)
        found = np.array(rows).reshape(-1, len(self.sizes)).astype(np.int64)
        if len(found):
            found = found[self.constraints.met(found)]
        if most is None or len(found) <= most:
            return found
        order = np.argsort(-self.regression(found), kind="stable")
        self._seen.difference_update(row.tobytes() for row in found[order[most:]])  # they may come another time
        return found[order[:most]]

    @property
    def regression(self) -> Regression:
        """Of what is known, fitted anew as that grows."""
        if self._regression is None or self.calls > self._fitted_at * _STALE:
            self._regression, self._fitted_at = Regression(*self.known, self.sizes), self.calls
        return self._regression

    def scored(self, fresh: np.ndarray) -> _Scored:
        found = _Scored(fresh, _scores(self.score, fresh) if len(fresh) else np.zeros(0))
        self.calls += len(fresh)
        self.known = _best(self.known.joined(found), _KNOWN)
        return found

    def improved(self, alive: _Scored) -> _Scored:
        """Generations until they gain nothing, then exchanges until these gain nothing; the best of all of it."""
        if not len(alive.candidates):
            return alive
        alive = self._repeated(alive, self._children, self.settings.patience)
        if self.settings.exchanges:
            tried: set[bytes] = set()
            alive = self._repeated(alive, lambda a: self._exchanges(a, tried), 1)
        return alive

    def shocked(self, alive: _Scored) -> _Scored:
        """The best of what shocks make of the survivors, moved inside the constraints again."""
        moved = shocked(alive.candidates, self.sizes, _SHOCKED, self.rng)
        moved, distance = self.constraints.repaired(moved, self.rng)
        return _best(self.scored(self.fresh(moved[distance == 0])), _SURVIVORS)

    def _repeated(self, alive: _Scored, step: Callable[[_Scored], _Scored], patience: int) -> _Scored:
        alive, idle = _best(alive, self.settings.top), 0
        while idle < patience and not self.ended:
            before = alive.scores[0]
            alive = _best(alive.joined(step(alive)), self.settings.top)
            idle = 0 if alive.scores[0] - before > self.settings.epsilon else idle + 1
            self.best.append(max(float(alive.scores[0]), self.best[-1]))
        return alive

    def _children(self, alive: _Scored) -> _Scored:
        s = self.settings
        return self.scored(self.fresh(children_of(*alive, self.sizes, s.children, self.rng), s.scored))

    def _exchanges(self, alive: _Scored, tried: set[bytes]) -> _Scored:
        """Exchanges of the best that have not had theirs yet."""
        wanted = self.settings.exchanges
        found = [alive.candidates[:0]]
        for elite in [row for row in alive.candidates if row.tobytes() not in tried][: self.settings.elites]:
            tried.add(elite.tobytes())
            others = exchanges(elite, self.regression.added, self.sizes, wanted * _LOOKED_AT, self.rng)
            found.append(self.fresh(others, wanted))
        return self.scored(np.concatenate(found))


def _scores(score: Score, candidates: np.ndarray) -> np.ndarray:
    found = np.asarray(score(candidates), np.float64)
    if found.shape != (len(candidates),) or np.isnan(found).any():
        raise UsageError(f"the score gives {found.shape} with {int(np.isnan(found).sum())} that are no number")
    return found


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
    settings = replace(settings, shocks=0)  # each begins with what the others have found
    none = np.zeros((0, len(constraints.space)), np.int64)
    inherited = none if inherited is None else constraints.space.check(inherited)
    best: list[float] = []
    found, calls = _Scored(none, np.zeros(0)), 0
    for number, budget in enumerate(np.linspace(values.min(), values.max(), steps)):
        run = _Evolution(
            score, constraints.with_bounds(Constraint(column, high=float(budget))), settings, seed + number
        )
        try:
            run.run(np.concatenate([_best(found, len(found.scores)).candidates, inherited]))
        except ConstraintError:  # so little that hardly any candidate has it
            continue
        found = found.joined(run.known)
        calls, best = calls + run.calls, [*best, run.best[-1]]
    costs = constraints.values(found.candidates, column)[column]
    front, highest = [], -np.inf
    for index in np.lexsort((-found.scores, costs)):
        if found.scores[index] > highest:
            front.append(index)
            highest = found.scores[index]
    return Evolved(found.candidates[front], found.scores[front], tuple(best), calls)
