"""Searchers of the AutoML groups that NARS is compared with: SMAC3, DEHB and NePS, with and without Hyperband.

SMAC3 comes with `pip install '.[benchmarks]'`, NePS with `'.[peers]'`, which changes versions of other packages; DEHB
(`pip install dehb`) requires an older NumPy than NePS. All three minimize the error in percent. Infeasible proposals
count as an error of 100 and cost nothing. NePS does not know which variables are active. Hyperband's shortest trainings
have 1/27 of the epochs, and longer ones continue them.
"""

import tempfile
from pathlib import Path

import numpy as np
from search_peers import NotApplicableError, has_positions, index_at, is_feasible, peer

from fbnetv3.utils.logging_setup import quiet_logger, suppress_warnings
from fbnetv3.utils.random_state import seeded

ETA = 3  # of Hyperband
SHORTEST_TRAINING = 1 / 27  # of a full one's epochs
INFEASIBLE_ERROR = 100.0


def measure_error(trainer, vector, fidelity=None):
    """Return the error in percent after a training of `fidelity` (default: all) epochs."""
    if not is_feasible(trainer.task, vector):
        return INFEASIBLE_ERROR
    epochs = trainer.task.epochs if fidelity is None else max(1, round(fidelity))
    return 100 - trainer.train(vector, epochs)


def shortest_training(task):
    """Return the smallest number of epochs.

    Raises:
        NotApplicableError: the task has no learning curves.
    """
    if task.epochs < ETA:
        raise NotApplicableError("trainings of one epoch cannot be shortened")
    return max(1, round(task.epochs * SHORTEST_TRAINING))


def build_configspace(space, seed):
    """Return the space as a `ConfigSpace.ConfigurationSpace` of the values' indices or positions."""
    import ConfigSpace

    configspace = ConfigSpace.ConfigurationSpace(seed=seed)
    variables = {variable.name: variable for variable in space.variables}
    for name, variable in variables.items():
        last = len(variable) - 1
        if variable.is_categorical:
            configspace.add(ConfigSpace.CategoricalHyperparameter(name, list(range(last + 1))))
        elif has_positions(variable):
            configspace.add(ConfigSpace.UniformFloatHyperparameter(name, 0.0, 1.0))
        else:
            configspace.add(ConfigSpace.UniformIntegerHyperparameter(name, 0, last))
        conditions = []
        for condition in variable.when:
            indices = [variables[condition.parent].index(value) for value in condition.values]
            conditions.append(
                ConfigSpace.InCondition(configspace[name], configspace[condition.parent], indices)
            )
        if conditions:
            configspace.add(
                conditions[0] if len(conditions) == 1 else ConfigSpace.AndConjunction(*conditions)
            )
    return configspace


def encode_values(space, values):
    """Return the candidate with these indices or positions by variable name; inactive variables may be missing."""
    values = {variable.name: values.get(variable.name, 0) for variable in space.variables}
    return np.array(
        [
            index_at(variable, values[variable.name])
            if has_positions(variable)
            else int(values[variable.name])
            for variable in space.variables
        ]
    )


@peer(package="smac")
def smac(trainer, seed):
    """SMAC3 with its defaults for hyperparameters: a random forest, log EI, Sobol points at first."""
    from smac import HyperparameterOptimizationFacade

    run_smac(trainer, seed, HyperparameterOptimizationFacade)


@peer(package="smac")
def smac_hyperband(trainer, seed):
    """SMAC3's multi-fidelity search: Hyperband with candidates from a random forest."""
    from smac import MultiFidelityFacade

    shortest = shortest_training(trainer.task)
    run_smac(trainer, seed, MultiFidelityFacade, min_budget=shortest, max_budget=trainer.task.epochs)


def run_smac(trainer, seed, facade, **budgets):
    from smac import Scenario
    from smac.runhistory import TrialValue

    space = trainer.task.space
    # It warns of empty means, which users cannot change
    with tempfile.TemporaryDirectory() as folder, suppress_warnings(), quiet_logger("smac"):
        scenario = Scenario(
            build_configspace(space, seed),
            output_directory=Path(folder),
            deterministic=True,
            n_trials=trainer.budget // trainer.task.epochs,
            seed=seed,
            **budgets,
        )
        optimizer = facade(scenario, _no_target, logging_level=False, overwrite=True)
        while True:
            trial = optimizer.ask()
            error = measure_error(trainer, encode_values(space, dict(trial.config)), trial.budget)
            optimizer.tell(trial, TrialValue(cost=error), save=False)


def _no_target(config, seed=0, budget=None):
    """Stand for the target function, which SMAC requires although candidates are trained outside of it."""
    raise NotImplementedError


@peer(package="dehb")
def dehb(trainer, seed):
    """DEHB: Hyperband with candidates from differential evolution."""
    from dehb import DEHB

    space = trainer.task.space
    with tempfile.TemporaryDirectory() as folder:
        optimizer = DEHB(
            cs=build_configspace(space, seed),
            min_fidelity=shortest_training(trainer.task),
            max_fidelity=trainer.task.epochs,
            eta=ETA,
            n_workers=1,
            seed=seed,
            output_path=folder,
            save_freq="end",
            log_level="ERROR",
        )
        while True:
            job = optimizer.ask()
            error = measure_error(trainer, encode_values(space, dict(job["config"])), job["fidelity"])
            optimizer.tell(job, {"fitness": error, "cost": job["fidelity"]})


@peer(package="neps")
def neps_bo(trainer, seed):
    """NePS's Bayesian optimization."""
    from neps.optimizers.algorithms import bayesian_optimization

    run_neps(trainer, seed, bayesian_optimization)


@peer(package="neps")
def neps_hyperband(trainer, seed):
    """NePS's Hyperband; its PriorBand needs a prior, which the tasks do not have."""
    from neps.optimizers.algorithms import hyperband

    run_neps(trainer, seed, hyperband, shortest_training(trainer.task))


def run_neps(trainer, seed, algorithm, shortest=None):
    import neps

    space, epochs = trainer.task.space, trainer.task.epochs
    parameters = {variable.name: neps_parameter(variable) for variable in space.variables}
    if shortest is not None:
        parameters["epochs"] = neps.HPOInteger(shortest, epochs, is_fidelity=True)
    with seeded(seed), suppress_warnings():
        optimizer = neps.AskAndTell(algorithm(neps.SearchSpace(parameters)))
        while True:
            trial = optimizer.ask()
            vector = encode_values(space, trial.config)
            optimizer.tell(trial, measure_error(trainer, vector, trial.config.get("epochs")))


def neps_parameter(variable):
    import neps

    if variable.is_categorical:
        return neps.HPOCategorical(list(range(len(variable))))
    if has_positions(variable):
        return neps.HPOFloat(0, 1)
    return neps.HPOInteger(0, len(variable) - 1)


AUTOML_PEERS = {
    "smac": smac,
    "smac_hyperband": smac_hyperband,
    "dehb": dehb,
    "neps_bo": neps_bo,
    "neps_hyperband": neps_hyperband,
}
