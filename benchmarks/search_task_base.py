"""The search benchmark's interface of a task, and the search for its best value."""

import functools
import itertools

import numpy as np

from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import random_candidates

# Random candidates, and the best of them from which local searches start
NUM_RANDOM = 100_000
NUM_STARTS = 30
MAX_VALUES = 64  # of a variable that are tried at once
MIN_GAIN = 1e-5  # of a step, in points


class Task:
    """A search problem: a space, its constraints, and a learning curve for each candidate and seed.

    Attributes:
        name: name by which `build_task` knows the task.
        space: search space; vectors are its candidates.
        epochs: number of epochs of a full training.
        noise: standard deviation of a measured accuracy, in points.
        bounds: inclusive bounds by column.
        columns: functions from candidates to numbers by name, as for `search`.
        best: largest true value of a feasible candidate.
    """

    def __init__(self, name, space, epochs, noise=0.0, bounds=None, columns=None):
        self.name = name
        self.space = space
        self.epochs = epochs
        self.noise = noise
        self.bounds = bounds or {}
        self.columns = columns or {}
        constraints = [Constraint(column, *limits) for column, limits in self.bounds.items()]
        self.constraints = Constraints(space, constraints, self.columns)

    @functools.cached_property
    def best(self):
        return find_best_value(self.true_values, self.constraints)

    def true_values(self, vectors):
        """Return the accuracies after full trainings without noise, (N,)."""
        raise NotImplementedError

    def true_value(self, vector):
        """Return the accuracy after a full training without noise."""
        return float(self.true_values(np.asarray(vector)[None])[0])

    def noiseless_curve(self, vector):
        """Return the accuracy after each epoch without noise, (epochs,)."""
        raise NotImplementedError

    def curve(self, vector, seed):
        """Return the measured accuracy after each epoch, a list; the same for the same seed."""
        curve = self.noiseless_curve(vector)
        if self.noise:
            # Half of the variance is the training's, the other half each epoch's
            noise = np.random.default_rng([seed, *map(int, vector)]).normal(0, 1, self.epochs + 1)
            curve = curve + self.noise * np.sqrt(0.5) * (noise[0] + noise[1:])
        return curve.tolist()


def find_best_value(values, constraints, seed=0):
    """Return the largest value of the feasible candidates, as far as local search finds it.

    Starts are the best of many random candidates. Each is replaced with the best candidate that differs in one
    variable, or, where none is better, in two, until none of these is better either.

    Args:
        values: function from candidates, integers (N, variables), to their values, (N,).
        constraints: the space's `Constraints`.
        seed: seed of the random candidates.
    """
    rng = np.random.default_rng(seed)
    candidates = random_candidates(constraints.space, NUM_RANDOM, rng)
    candidates = candidates[constraints.feasible(candidates)]
    starts = candidates[np.argsort(-values(candidates))[:NUM_STARTS]]
    return max(climb(values, constraints, start, rng) for start in starts)


def climb(values, constraints, vector, rng):
    """Return the value of the local optimum that a candidate leads to."""
    best = values(vector[None])[0]
    while True:
        options = [
            variable.variations(vector[[column]], MAX_VALUES, rng)[0]
            for column, variable in enumerate(constraints.space.variables)
        ]
        for list_changes in (change_one, change_two):
            candidates = list_changes(vector, options)
            candidates = candidates[constraints.feasible(candidates)]
            candidate_values = values(candidates)
            if len(candidates) and candidate_values.max() > best + MIN_GAIN:
                best = candidate_values.max()
                vector = candidates[candidate_values.argmax()]
                break
        else:
            return float(best)


def change_one(vector, options):
    """Return candidates that differ in at most one variable, given the values to try of each."""
    columns = np.repeat(np.arange(len(options)), [len(values) for values in options])
    changed = np.repeat(vector[None], len(columns), 0)
    changed[np.arange(len(columns)), columns] = np.concatenate(options)
    return changed


def change_two(vector, options):
    """Return candidates that differ in at most two variables, given the values to try of each."""
    changed = []
    for first, second in itertools.combinations(range(len(options)), 2):
        values = np.stack(np.meshgrid(options[first], options[second]), -1).reshape(-1, 2)
        pairs = np.repeat(vector[None], len(values), 0)
        pairs[:, [first, second]] = values
        changed.append(pairs)
    return np.concatenate(changed)
