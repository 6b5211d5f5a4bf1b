"""Search for the untried candidate with the highest score, such as an acquisition function.

The candidates are made anew for each proposal: mutants of the best trials and random ones evolve for some generations,
then the neighbors of the best are searched until none is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fbnetv3.nars.evolution.evolution import ScoreFunction
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.sampling import random_candidates, sample_quasi_random
from fbnetv3.nars.space.search_space import Space

# Sizes of the evolution
_NUM_RANDOM = 200
_NUM_OFFSPRING = 200
_NUM_GENERATIONS = 5
_NUM_SURVIVORS = 40
_NUM_PARENTS = 25
_NUM_FAVORED = 8  # parents that are drawn twice as often
_NUM_TRIALS = 4  # best trials among the parents of every generation
# Number of candidates whose neighbors are searched, and the maximum number of steps from each
_NUM_CLIMBED = 2
_MAX_STEPS = 6
# Probability of crossover, and of a small step instead of any value; parameter of the number of mutated variables
_CROSSOVER_RATE = 0.4
_STEP_RATE = 0.6
_MUTATION_DECAY = 0.55
# Attempts to find random feasible candidates before a sample of them is repaired
_MAX_DRAWS = 8
_MIN_GAIN = 1e-9


@dataclass(frozen=True)
class CandidateSearch:
    """Searches the feasible candidates of a space, except for some that are excluded."""

    constraints: Constraints
    excluded: frozenset[bytes]  # canonical candidates as bytes
    rng: np.random.Generator

    def maximize(self, score: ScoreFunction, best_trials: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Return the candidate with the highest score, (variables,), and its score; None if no candidate is left.

        `best_trials` are candidates, integers (N, variables), best first.
        """
        start = [self._draw_random()]
        if len(best_trials):
            start.append(self._mutate(best_trials, _NUM_OFFSPRING))
        candidates = self._select(np.concatenate(start))
        if not len(candidates):
            candidates = self._select(
                sample_quasi_random(self.constraints, len(self.excluded) + _NUM_RANDOM)
            )
        if not len(candidates):
            return None
        scores = score(candidates)
        for _ in range(_NUM_GENERATIONS):
            order = np.argsort(-scores, kind="stable")[:_NUM_SURVIVORS]
            candidates, scores = candidates[order], scores[order]
            parents = [candidates[:_NUM_PARENTS], candidates[:_NUM_FAVORED], best_trials[:_NUM_TRIALS]]
            offspring = self._select(self._mutate(np.concatenate(parents), _NUM_OFFSPRING), candidates)
            if len(offspring):
                candidates = np.concatenate([candidates, offspring])
                scores = np.concatenate([scores, score(offspring)])
        order = np.argsort(-scores, kind="stable")[:_NUM_CLIMBED]
        peaks = [self._climb(candidates[index], float(scores[index]), score) for index in order]
        return max(peaks, key=lambda peak: peak[1])

    def _draw_random(self) -> np.ndarray:
        """Return random feasible candidates."""
        space = self.constraints.space
        feasible = []
        for _ in range(_MAX_DRAWS):
            drawn = random_candidates(space, _NUM_RANDOM, self.rng)
            feasible.append(drawn[self.constraints.feasible(drawn)])
            if sum(map(len, feasible)) >= _NUM_RANDOM:
                break
        else:
            # Few are feasible
            repaired, violation = self.constraints.repair(drawn[: _NUM_RANDOM // 4], self.rng)
            feasible.append(repaired[violation == 0])
        return np.concatenate(feasible)[:_NUM_RANDOM]

    def _select(self, candidates: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Return distinct candidates that are feasible, not excluded, and not among those present."""
        excluded = set() if present is None else {row.tobytes() for row in present}
        rows = {row.tobytes(): row for row in candidates}
        new = [row for key, row in rows.items() if key not in self.excluded and key not in excluded]
        selected = np.array(new, np.int64).reshape(-1, len(self.constraints.space))
        return selected[self.constraints.feasible(selected)] if len(selected) else selected

    def _mutate(self, parents: np.ndarray, count: int) -> np.ndarray:
        return mutate(self.constraints.space, parents, count, self.rng)

    def _climb(self, candidate: np.ndarray, value: float, score: ScoreFunction) -> tuple[np.ndarray, float]:
        """Move to the best neighbor until none is better."""
        for _ in range(_MAX_STEPS):
            neighbors = self._select(self.constraints.space.neighbors(candidate, self.rng))
            if not len(neighbors):
                break
            scores = score(neighbors)
            best = int(np.argmax(scores))
            if scores[best] <= value + _MIN_GAIN:
                break
            candidate, value = neighbors[best], float(scores[best])
        return candidate, value


def mutate(space: Space, parents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` canonical offspring of parents, integers (N, variables): crossovers with some variables mutated.

    Numbers mutate by a step, of which most are small, or to any value; categories to any value.
    """
    first = parents[rng.integers(len(parents), size=count)]
    second = parents[rng.integers(len(parents), size=count)]
    num_variables = len(space)
    # Uniform crossover
    is_crossed = rng.random((count, 1)) < _CROSSOVER_RATE
    from_second = is_crossed & (rng.random((count, num_variables)) < 0.5)
    offspring = np.where(from_second, second, first)
    # Mutate one variable or, with falling probability, more; prefer those that are active
    num_mutated = np.minimum(rng.geometric(_MUTATION_DECAY, count), num_variables)
    order = rng.random(offspring.shape) + ~space.active(offspring)
    is_mutated = order.argsort(1).argsort(1) < num_mutated[:, None]
    random = random_candidates(space, count, rng)
    # Steps of one for variables with few values; from one to a tenth of the range for others
    scale = np.maximum(space.sizes * 10.0 ** -rng.uniform(1, 6, offspring.shape), 1)
    steps = np.maximum(np.rint(scale * np.abs(rng.standard_normal(offspring.shape))), 1)
    stepped = offspring + (steps * rng.choice([-1, 1], offspring.shape)).astype(np.int64)
    stepped = np.clip(stepped, 0, space.sizes - 1)
    is_step = (rng.random(offspring.shape) < _STEP_RATE) & ~space.is_categorical
    mutated = np.where(is_mutated, np.where(is_step, stepped, random), offspring)
    return space.complete_changes(first, mutated, rng)
