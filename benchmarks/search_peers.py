"""Searchers that NARS is compared with: random search, regularized evolution, Optuna's samplers.

Every searcher is a function of a task, a number of full trainings that its epochs must not exceed, and a seed; it
returns its `Evaluation`s. Its proposals come one after the other.
"""

import contextlib
import functools
import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UserError
from fbnetv3.nars.space.sampling import random_candidates

# Settings of regularized evolution
POPULATION_SIZE = 20
SAMPLE_SIZE = 5
# Infeasible proposals in a row after which a random feasible candidate is trained
MAX_INFEASIBLE = 100


@dataclass(frozen=True)
class Evaluation:
    """A training within a search."""

    spent: int  # epochs of the search so far, including this training's
    vector: np.ndarray  # candidate
    value: float  # accuracy measured after the last epoch
    epochs: int  # length of the training, including epochs of an earlier one that it continues
    recommended: np.ndarray | None = (
        None  # candidate that is recommended at this point, if not the best measured
    )


class BudgetSpentError(Exception):
    """The next training would exceed the search's epochs."""


class Trainer:
    """Trains candidates of a task until the epochs are used up, and records the evaluations.

    A training that is longer than an earlier one of the same candidate continues it and costs only the difference.
    """

    def __init__(self, task, trainings, seed):
        self.task = task
        self.seed = seed
        self.budget = trainings * task.epochs
        self.spent = 0
        self.evaluations = []
        self._trained = {}  # epochs by candidate

    def train(self, vector, epochs=None):
        """Return the accuracy after `epochs` (default: a full training).

        Raises:
            BudgetSpentError: too few epochs are left.
        """
        epochs = epochs or self.task.epochs
        (vector,) = self.task.space.canonicalize(np.asarray(vector)[None])
        key = tuple(vector.tolist())
        earlier = self._trained.get(key, 0)
        cost = epochs - earlier if epochs > earlier else epochs
        if self.spent + cost > self.budget:
            raise BudgetSpentError
        self.spent += cost
        self._trained[key] = max(earlier, epochs)
        value = self.task.curve(vector, self.seed)[epochs - 1]
        self.evaluations.append(Evaluation(self.spent, vector, value, epochs))
        return value


class NotApplicableError(UserError):
    """A searcher cannot run on a task."""


def peer(function=None, *, package=None):
    """Make a searcher of a function of a `Trainer` and a seed that trains candidates until `BudgetSpentError`."""
    if function is None:
        return functools.partial(peer, package=package)

    @functools.wraps(function)
    def run(task, trainings, seed):
        trainer = Trainer(task, trainings, seed)
        with contextlib.suppress(BudgetSpentError):
            function(trainer, seed)
        return trainer.evaluations

    run.package = package
    return run


def is_installed(searcher):
    """Return whether the package of a peer can be imported."""
    package = getattr(searcher, "package", None)
    return package is None or importlib.util.find_spec(package) is not None


def regrets(task, evaluations, trainings):
    """Return the true regret of the recommendation after each full training's worth of epochs, (trainings,).

    Unless the searcher says otherwise, the candidate with the best measured accuracy is recommended; longer trainings
    take precedence over shorter ones. Before the first evaluation, the regret is infinite.
    """
    values = []
    best_rank = (0, -np.inf)
    best = np.inf
    position = 0
    for training in range(1, trainings + 1):
        while position < len(evaluations) and evaluations[position].spent <= training * task.epochs:
            evaluation = evaluations[position]
            position += 1
            rank = (evaluation.epochs, evaluation.value)
            if evaluation.recommended is not None:
                best = task.best - task.true_value(evaluation.recommended)
            elif rank > best_rank:
                best_rank, best = rank, task.best - task.true_value(evaluation.vector)
        values.append(float(best))
    return values


def random_candidate(task, rng):
    while True:
        candidates = random_candidates(task.space, 64, rng)
        candidates = candidates[task.constraints.feasible(candidates)]
        if len(candidates):
            return candidates[0]


def has_positions(variable):
    """Return whether peers choose the position of a variable's value in [0, 1] rather than its index."""
    return variable.is_continuous or variable.log


def index_at(variable, position):
    return int(variable.from_unit(np.array([position]))[0])


def is_feasible(task, vector):
    return bool(task.constraints.feasible(np.asarray(vector)[None])[0])


@peer
def random_search(trainer, seed):
    rng = np.random.default_rng(seed)
    while True:
        trainer.train(random_candidate(trainer.task, rng))


@peer
def regularized_evolution(trainer, seed):
    """Regularized evolution (Real et al. 2019): mutate the best of a sample; the oldest candidate dies."""
    rng = np.random.default_rng(seed)
    population = []
    while True:
        if len(population) < POPULATION_SIZE:
            child = random_candidate(trainer.task, rng)
        else:
            chosen = rng.choice(len(population), SAMPLE_SIZE, replace=False)
            parent = max((population[i] for i in chosen), key=lambda pair: pair[1])[0]
            child = mutate(trainer.task, parent, rng)
        population = [*population, (child, trainer.train(child))][-POPULATION_SIZE:]


def mutate(task, parent, rng):
    """Return a feasible candidate with another value of one active variable."""
    while True:
        column = rng.choice(np.flatnonzero(task.space.active(parent[None])[0]))
        child = parent[None].copy()
        child[:, column] = random_candidates(task.space, 1, rng)[:, column]
        (child,) = task.space.complete_changes(parent[None], child, rng)
        if (child != parent).any() and is_feasible(task, child):
            return child


@peer(package="optuna")
def tpe(trainer, seed):
    """Optuna's TPE: multivariate, the default since version 5, and over groups of conditional variables."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # for `group`
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    run_optuna(trainer, seed, sampler)


@peer(package="optuna")
def tpe_univariate(trainer, seed):
    import optuna

    run_optuna(trainer, seed, optuna.samplers.TPESampler(seed=seed, multivariate=False))


@peer(package="optuna")
def gp(trainer, seed):
    import optuna

    run_optuna(trainer, seed, optuna.samplers.GPSampler(seed=seed))


def run_optuna(trainer, seed, sampler):
    """Train what a sampler proposes; infeasible proposals fail at no cost."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rng = np.random.default_rng(seed)
    num_infeasible = 0
    while True:
        trial = study.ask()
        vector = suggest(trial, trainer.task.space)
        if is_feasible(trainer.task, vector):
            study.tell(trial, trainer.train(vector))
            num_infeasible = 0
            continue
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        num_infeasible += 1
        if num_infeasible == MAX_INFEASIBLE:
            vector = random_candidate(trainer.task, rng)
            study.enqueue_trial(to_parameters(trainer.task.space, vector))


def to_parameters(space, vector):
    """Return the parameters with which a trial suggests a candidate."""
    (positions,) = space.positions(vector[None]).tolist()
    return {
        variable.name: positions[column] if has_positions(variable) else int(vector[column])
        for column, variable in enumerate(space.variables)
    }


def suggest(trial, space):
    """Return a trial's candidate; only active variables are suggested."""
    candidates = np.zeros((1, len(space)), int)
    for column, variable in enumerate(space.variables):
        if space.active(candidates)[0, column]:
            candidates[0, column] = suggest_index(trial, variable)
    return candidates[0]


def suggest_index(trial, variable):
    last = len(variable) - 1
    if variable.is_categorical:
        return trial.suggest_categorical(variable.name, list(range(last + 1)))
    if has_positions(variable):
        return index_at(variable, trial.suggest_float(variable.name, 0, 1))
    return trial.suggest_int(variable.name, 0, last)


BASIC_PEERS = {
    "random": random_search,
    "evolution": regularized_evolution,
    "tpe": tpe,
    "tpe_univariate": tpe_univariate,
    "gp": gp,
}
