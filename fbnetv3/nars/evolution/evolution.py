"""Evolution over a predictor's scores: an adaptive genetic algorithm within constraints (Sec. 3.4).

The rates of crossover and mutation follow M. Srinivas and L. M. Patnaik, "Adaptive probabilities of crossover and
mutation in genetic algorithms", IEEE Transactions on Systems, Man and Cybernetics 24(4), 1994: good candidates
change little, poor ones a lot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fbnetv3.errors import UsageError
from fbnetv3.nars.evolution.genetic_operators import (
    SurrogateRegression,
    breed,
    list_neighbors,
    perturb,
)
from fbnetv3.nars.setting_fields import check_fields, integer_field, number_field
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.feasibility import ConstraintError
from fbnetv3.nars.space.sampling import sample_pool

ScoreFunction = Callable[[np.ndarray], np.ndarray]
"""Maps candidates, integers (N, variables), to scores (N,); higher is better."""

# The regression is fitted to this many of the best candidates, and again whenever the number scored grows by a tenth
_ARCHIVE_SIZE = 4000
_REFIT_GROWTH = 1.1
# Neighbors that the regression ranks for each that is scored
_NEIGHBORS_RANKED = 13
# Perturbed candidates, and how many of the best of them evolve further
_NUM_PERTURBED = 400
_PERTURBED_SURVIVORS = 40
# Number of candidates whose costs determine the budgets along a Pareto front
_FRONT_POOL_SIZE = 1000


@dataclass(frozen=True)
class EvolutionSettings:
    """Settings of an evolutionary search. Only `epsilon` comes from the paper.

    The search breeds generations until the best score stops improving, then searches the neighbors of the best
    candidates, then perturbs the survivors and repeats. A surrogate regression on the scores so far chooses which
    offspring and neighbors are scored.

    Attributes:
        inherited: number of best trials in the first generation (p).
        random: number of random candidates in the first generation (q).
        top: number of survivors of a generation (K).
        offspring: number of offspring of each survivor.
        scored: number of offspring scored in each generation.
        epsilon: smallest gain of the best score that counts.
        patience: generations without gain before the neighbors are searched.
        elites: number of best candidates whose neighbors are searched.
        swaps: number of neighbors scored for each elite; 0 skips this search.
        perturbations: perturbations without gain before the search ends; 0 for none.
        max_generations: limit on generations, steps of the search over neighbors included.
    """

    inherited: int = integer_field(50, 0)
    random: int = integer_field(1000, 1)
    top: int = integer_field(50, 2)
    offspring: int = integer_field(60, 1)
    scored: int = integer_field(330, 1)
    epsilon: float = number_field(1e-6, 0)
    patience: int = integer_field(2, 1)
    elites: int = integer_field(2, 1)
    swaps: int = integer_field(300, 0)
    perturbations: int = integer_field(2, 0)
    max_generations: int = integer_field(500, 1)

    def __post_init__(self) -> None:
        check_fields(self, "evolution.")


@dataclass(frozen=True)
class EvolutionResult:
    """Result of an evolutionary search: the survivors, best first, or a Pareto front, cheapest first."""

    candidates: np.ndarray  # integers (K, variables); all meet the constraints
    scores: np.ndarray  # (K,)
    best_scores: tuple[float, ...]  # after each generation; of a Pareto front, for each budget
    num_scored: int  # number of candidates scored


def evolve(
    score: ScoreFunction,
    constraints: Constraints,
    inherited: np.ndarray | None = None,
    settings: EvolutionSettings = EvolutionSettings(),
    seed: int = 0,
) -> EvolutionResult:
    """Search for the feasible candidates with the highest scores.

    Args:
        score: score function, such as an `AccuracyPredictor`.
        constraints: constraints on the candidates of a space.
        inherited: candidates of the first generation, best first; infeasible ones are skipped.
        settings: sizes and stopping criteria.
        seed: random seed.

    Raises:
        ConstraintError: no candidate is feasible; the message gives the nearest one.
    """
    evolution = _Evolution(score, constraints, settings, seed)
    survivors = evolution.run(inherited)
    return EvolutionResult(
        survivors.candidates, survivors.scores, tuple(evolution.best_scores), evolution.num_scored
    )


def pareto_front(
    score: ScoreFunction,
    constraints: Constraints,
    column: str,
    inherited: np.ndarray | None = None,
    num_budgets: int = 16,
    settings: EvolutionSettings = EvolutionSettings(),
    seed: int = 0,
) -> EvolutionResult:
    """Search for the Pareto front of score and one cost: the candidates that score higher than every cheaper one.

    One evolutionary search runs for each of `num_budgets` budgets across the column's range, and starts from the
    results of the earlier ones.

    Args:
        score: score function, such as an `AccuracyPredictor`.
        constraints: additional constraints on the candidates of a space.
        column: column to minimize, such as "macs".
        inherited: candidates of the first generations.
        num_budgets: number of budgets.
        settings: settings of each evolutionary search.
        seed: random seed.

    Returns:
        The front, cheapest first; `best_scores` has one entry per budget within which a candidate was found.
    """
    pool = sample_pool(constraints, _FRONT_POOL_SIZE, seed)
    pool_costs = constraints.column_values(pool, column)[column]
    # Each search starts from the results of the earlier ones, so none needs perturbations
    settings = replace(settings, perturbations=0)
    empty = np.zeros((0, len(constraints.space)), np.int64)
    inherited = empty if inherited is None else constraints.space.validate(inherited)
    archive = _Population(empty, np.zeros(0))
    best_scores: list[float] = []
    num_scored = 0
    budgets = np.linspace(pool_costs.min(), pool_costs.max(), num_budgets)
    for step, budget in enumerate(budgets):
        bounded = constraints.with_bounds(Constraint(column, high=float(budget)))
        evolution = _Evolution(score, bounded, settings, seed + step)
        try:
            evolution.run(np.concatenate([archive.best().candidates, inherited]))
        except ConstraintError:  # a budget so small that no candidate is found within it
            continue
        archive = archive.join(evolution.archive)
        num_scored += evolution.num_scored
        best_scores.append(evolution.best_scores[-1])
    # In order of cost, keep each candidate with a higher score than all cheaper ones
    costs = constraints.column_values(archive.candidates, column)[column]
    front = []
    highest = -np.inf
    for index in np.lexsort((-archive.scores, costs)):
        if archive.scores[index] > highest:
            front.append(index)
            highest = archive.scores[index]
    return EvolutionResult(archive.candidates[front], archive.scores[front], tuple(best_scores), num_scored)


class _Population(NamedTuple):
    candidates: np.ndarray
    scores: np.ndarray

    def join(self, other: _Population) -> _Population:
        return _Population(
            np.concatenate([self.candidates, other.candidates]), np.concatenate([self.scores, other.scores])
        )

    def best(self, count: int | None = None) -> _Population:
        """Return the best `count` candidates (default: all), best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return _Population(self.candidates[order], self.scores[order])


class _Evolution:
    """One evolutionary search, which scores only feasible candidates and none twice."""

    def __init__(
        self, score: ScoreFunction, constraints: Constraints, settings: EvolutionSettings, seed: int
    ) -> None:
        self.score = score
        self.constraints = constraints
        self.settings = settings
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.space = constraints.space
        # The best scored candidates
        self.archive = _Population(np.zeros((0, len(self.space)), np.int64), np.zeros(0))
        self.best_scores: list[float] = []  # after each generation
        self.num_scored = 0
        self._seen: set[bytes] = set()
        # Candidates whose neighbors have been searched since the last perturbation
        self._searched: set[bytes] = set()
        self._regression: SurrogateRegression | None = None
        self._num_scored_at_fit = 0

    def run(self, inherited: np.ndarray | None) -> _Population:
        """Run to the end and return the last survivors, best first."""
        settings = self.settings
        # The first generation: the best trials and random candidates
        first_generation = sample_pool(self.constraints, settings.random, self.seed)
        if inherited is not None and len(inherited):
            inherited = self.space.canonicalize(inherited)
            inherited = inherited[self.constraints.feasible(inherited)][: settings.inherited]
            first_generation = np.concatenate([inherited, first_generation])
        scored = self._evaluate(self._select_new(first_generation))
        self.best_scores.append(float(scored.scores.max()))
        # Evolve, then perturb the survivors and evolve again
        survivors = self._breed_then_search_neighbors(scored)
        patience = settings.perturbations
        return self._repeat_until_stalled(survivors, self._perturb, patience, is_generation=False)

    def _breed_then_search_neighbors(self, start: _Population) -> _Population:
        """Breed generations until the best score stalls, then search neighbors until it stalls again."""
        survivors = start.best(self.settings.top)
        survivors = self._repeat_until_stalled(survivors, self._breed, self.settings.patience)
        if self.settings.swaps:
            self._searched.clear()
            survivors = self._repeat_until_stalled(survivors, self._search_neighbors, 1)
        return survivors

    def _repeat_until_stalled(
        self,
        survivors: _Population,
        step: Callable[[_Population], _Population],
        patience: int,
        is_generation: bool = True,
    ) -> _Population:
        """Repeat a step, keeping the best candidates, until `patience` steps bring no gain."""
        idle = 0
        while idle < patience and len(self.best_scores) <= self.settings.max_generations:
            best_before = survivors.scores[0]
            survivors = survivors.join(step(survivors)).best(self.settings.top)
            idle = 0 if survivors.scores[0] - best_before > self.settings.epsilon else idle + 1
            if is_generation:
                self.best_scores.append(max(float(survivors.scores[0]), self.best_scores[-1]))
        return survivors

    def _breed(self, survivors: _Population) -> _Population:
        settings = self.settings
        offspring = breed(survivors.candidates, survivors.scores, self.space, settings.offspring, self.rng)
        return self._evaluate(self._select_new(offspring, settings.scored))

    def _search_neighbors(self, survivors: _Population) -> _Population:
        """Score the most promising neighbors of the best survivors that have not been searched yet."""
        count = self.settings.swaps
        elites = [row for row in survivors.candidates if row.tobytes() not in self._searched][
            : self.settings.elites
        ]
        selected = [survivors.candidates[:0]]
        for elite in elites:
            self._searched.add(elite.tobytes())
            effects = self._fitted_regression().effects
            neighbors = list_neighbors(elite, effects, self.space, count * _NEIGHBORS_RANKED, self.rng)
            selected.append(self._select_new(neighbors, count))
        return self._evaluate(np.concatenate(selected))

    def _perturb(self, survivors: _Population) -> _Population:
        """Perturb the survivors, move them into the feasible region, and evolve from the best of them."""
        perturbed = perturb(survivors.candidates, self.space, _NUM_PERTURBED, self.rng)
        repaired, violation = self.constraints.repair(perturbed, self.rng)
        scored = self._evaluate(self._select_new(repaired[violation == 0])).best(_PERTURBED_SURVIVORS)
        return self._breed_then_search_neighbors(scored) if len(scored.scores) else scored

    def _select_new(self, candidates: np.ndarray, limit: int | None = None) -> np.ndarray:
        """Return new, feasible candidates; if these are more than `limit`, those that the regression ranks best."""
        rows = {row.tobytes(): row for row in candidates if row.tobytes() not in self._seen}
        self._seen.update(rows)
        new = np.array(list(rows.values())).reshape(-1, len(self.space)).astype(np.int64)
        if len(new):
            new = new[self.constraints.feasible(new)]
        if limit is None or len(new) <= limit:
            return new
        order = np.argsort(-self._fitted_regression()(new), kind="stable")
        # Those left out now may be selected later
        self._seen.difference_update(row.tobytes() for row in new[order[limit:]])
        return new[order[:limit]]

    def _fitted_regression(self) -> SurrogateRegression:
        """Return the surrogate regression, refitted if the archive has grown enough."""
        if self._regression is None or self.num_scored > self._num_scored_at_fit * _REFIT_GROWTH:
            self._regression = SurrogateRegression(self.archive.candidates, self.archive.scores, self.space)
            self._num_scored_at_fit = self.num_scored
        return self._regression

    def _evaluate(self, candidates: np.ndarray) -> _Population:
        scores = np.asarray(self.score(candidates) if len(candidates) else [], np.float64)
        num_nan = int(np.isnan(scores).sum())
        if scores.shape != (len(candidates),) or num_nan:
            raise UsageError(
                f"the score function returned shape {scores.shape} with {num_nan} NaNs for {len(candidates)} "
                "candidates; it must return one number per candidate"
            )
        scored = _Population(candidates, scores)
        self.num_scored += len(candidates)
        self.archive = self.archive.join(scored).best(_ARCHIVE_SIZE)
        return scored
