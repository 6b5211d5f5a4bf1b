#!/usr/bin/env python3
"""NARS against random search, regularized evolution and Optuna's TPE at equal cost, over many seeds.

Two tasks: a table of measured networks (NAS-Bench-Macro's JSON file, https://github.com/xiusu/NAS-Bench-Macro), and
Table 2's joint space with learning curves and a synthetic accuracy, in which recipe and architecture depend on each
other. Needs optuna.

    benchmarks/nars_search.py --table nas-bench-macro_cifar10.json --seeds 30
    benchmarks/nars_search.py --joint --seeds 10
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from fbnetv3.arch import configs_folder
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.evaluators.table_evaluator import read_table
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.nars.space.variables import Variable

# Settings of regularized evolution
POPULATION_SIZE = 20
SAMPLE_SIZE = 5


@dataclass
class Task:
    """A search problem: a space, its constraints, and a learning curve for each candidate and seed."""

    space: Space
    constraints: Constraints
    bounds: dict
    epochs: int
    columns: dict

    def curve(self, vector, seed):
        raise NotImplementedError

    def true_accuracy(self, vector):
        """Return the accuracy without noise."""
        raise NotImplementedError


class TableTask(Task):
    """NAS-Bench-Macro: eight layers with three choices each; the mean of three measured accuracies."""

    def __init__(self, file):
        self.rows = read_table(file)
        space = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
        columns = {name: self._column(name) for name in ("flops", "params")}
        super().__init__(space, Constraints(space), {}, 1, columns)
        self.best = max(row["mean_acc"] for row in self.rows.values())

    def _row(self, vector):
        return self.rows["".join(str(value) for value in vector)]

    def _column(self, name):
        return lambda candidates: np.array([self._row(vector)[name] for vector in candidates], float)

    def curve(self, vector, seed):
        return [self._row(vector)["mean_acc"]]

    def true_accuracy(self, vector):
        return self._row(vector)["mean_acc"]


class JointTask(Task):
    """Table 2's space between 400 and 800 M MACs, with a synthetic accuracy.

    Each choice of the architecture has its own effect, with diminishing returns. The best learning rate falls
    with depth, the best regularization rises with width, and the optimizers differ. Learning curves approach the
    accuracy at a rate that depends on the learning rate, with noise.
    """

    def __init__(self, seed=0):
        space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
        self.rng = np.random.default_rng(seed)
        self.names = [variable.name for variable in space.variables]
        self.arch_columns = [
            i for i, v in enumerate(space.variables) if v.part == "architecture" and v.name != "s6_kernel"
        ]
        self.weights = self.rng.gamma(2.0, 0.5, len(space))
        self.shapes = self.rng.uniform(0.3, 2.0, len(space))
        self.pairs = [
            (*self.rng.choice(self.arch_columns, 2, replace=False), self.rng.normal(0, 0.5))
            for _ in range(12)
        ]
        bounds = [Constraint("macs", 4e8, 8e8)]
        super().__init__(space, Constraints(space, bounds), {"macs": [4e8, 8e8]}, 30, {})

    def true_accuracy(self, vector):
        x = vector / np.maximum(self.space.sizes - 1, 1)
        value = dict(zip(self.names, x, strict=True))
        total = sum(self.weights[i] * (1 - np.exp(-self.shapes[i] * 2 * x[i])) for i in self.arch_columns)
        total += sum(weight * (x[i] - 0.5) * (x[j] - 0.5) for i, j, weight in self.pairs)
        depth = np.mean([value[name] for name in self.names if name.endswith("repeat")])
        width = np.mean([value[name] for name in self.names if name.endswith("channels")])
        total -= 4 * (value["lr"] - (0.8 - 0.6 * depth)) ** 2
        strength = 0.4 * value["drop_rate"] + 0.3 * value["drop_path_rate"] + 0.3 * value["mixup"]
        total -= 6 * (strength - 0.2 - 0.5 * width) ** 2 + (value["weight_decay"] - 0.5) ** 2
        total += 0.4 * (value["optimizer"] == 1) * (value["lr"] > 0.4) + 0.3 * (value["ema"] == 0)
        return 60 + 1.2 * total

    def curve(self, vector, seed):
        speed = 3 + 4 * vector[self.names.index("lr")] / 10
        epochs = np.arange(1, self.epochs + 1) / self.epochs
        noise = np.random.default_rng([seed, *map(int, vector)]).normal(0, 0.15, self.epochs)
        return (self.true_accuracy(vector) - 30 * np.exp(-speed * epochs) * (1 - epochs) + noise).tolist()


def measure(task, vector, seed):
    """Return the last accuracy of a full evaluation."""
    return task.curve(vector, seed)[-1]


def random_search(task, trainings, seed):
    rng = np.random.default_rng(seed)
    return [random_candidate(task, rng) for _ in range(trainings)]


def random_candidate(task, rng):
    while True:
        candidates = rng.integers(0, task.space.sizes, (64, len(task.space)))
        candidates = candidates[task.constraints.feasible(candidates)]
        if len(candidates):
            return candidates[0]


def regularized_evolution(task, trainings, seed):
    """Regularized evolution (Real et al. 2019): mutate the best of a sample; the oldest candidate dies."""
    rng = np.random.default_rng(seed)
    population = []
    history = []
    while len(history) < trainings:
        if len(history) < POPULATION_SIZE:
            child = random_candidate(task, rng)
        else:
            chosen = rng.choice(len(population), SAMPLE_SIZE, replace=False)
            parent = max((population[i] for i in chosen), key=lambda pair: pair[1])[0]
            child = mutate(task, parent, rng)
        population = [*population, (child, measure(task, child, seed))][-POPULATION_SIZE:]
        history.append(child)
    return history


def mutate(task, parent, rng):
    while True:
        child = parent.copy()
        column = rng.integers(len(parent))
        child[column] = rng.integers(task.space.sizes[column])
        if (child != parent).any() and task.constraints.feasible(child[None])[0]:
            return child


def tpe(task, trainings, seed):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    history = []
    while len(history) < trainings:
        trial = study.ask()
        vector = np.array([suggest(trial, variable) for variable in task.space.variables])
        if not task.constraints.feasible(vector[None])[0]:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, measure(task, vector, seed))
        history.append(vector)
    return history


def suggest(trial, variable):
    if variable.is_categorical:
        return trial.suggest_categorical(variable.name, list(range(len(variable))))
    return trial.suggest_int(variable.name, 0, len(variable) - 1)


def nars(task, trainings, seed, batch, **settings):
    """Run a search."""
    with tempfile.TemporaryDirectory() as folder:
        return search(
            task.space,
            lambda candidate, epochs: task.curve(candidate.vector, seed)[:epochs],
            folder,
            constraints=task.bounds,
            columns=task.columns,
            epochs=task.epochs,
            rounds=-(-trainings // batch),
            batch=batch,
            seed=seed,
            executor="serial",
            **settings,
        )


def incumbents(task, history, seed, epochs=None):
    """Return the true accuracy of the candidate that looks best after each training run."""
    best_seen = -np.inf
    best_true = None
    incumbent_accuracies = []
    for vector in history:
        value = task.curve(vector, seed)[(epochs or task.epochs) - 1]
        if value > best_seen:
            best_seen, best_true = value, task.true_accuracy(vector)
        incumbent_accuracies.append(best_true)
    return incumbent_accuracies


def compare_on_table(file, seeds, batch, marks):
    task = TableTask(file)
    peers = {"random search": random_search, "regularized evolution": regularized_evolution, "TPE": tpe}
    regrets = {name: [] for name in ("NARS", *peers)}
    start = time.time()
    for seed in range(seeds):
        result = nars(task, max(marks), seed, batch, early_stopping_correlation=None)
        histories = {"NARS": [trial.candidate for trial in result.trials]}
        histories |= {name: peer(task, max(marks), seed) for name, peer in peers.items()}
        for name, history in histories.items():
            regrets[name].append([task.best - value for value in incumbents(task, history, seed)])
        found_after = {
            name: next((i + 1 for i, regret in enumerate(rows[-1]) if regret <= 0), None)
            for name, rows in regrets.items()
        }
        seconds = time.time() - start
        print(
            f"seed {seed}: optimum found after {found_after} trainings; {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    rows = []
    for name, side_regrets in regrets.items():
        by_mark = [[regret[mark - 1] for regret in side_regrets] for mark in marks]
        means = [f"{statistics.fmean(values):.4f}" for values in by_mark]
        hits = [f"{sum(value <= 0 for value in values) / seeds:.0%}" for values in by_mark]
        rows.append([name, *means, *hits])
    headers = ["", *(f"regret at {mark}" for mark in marks), *(f"best found at {mark}" for mark in marks)]
    print(
        f"\n{seeds} seeds, mean regret in points of accuracy, share of seeds that found the best of {len(task.rows)}\n"
    )
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def compare_on_joint(seeds, batch, rounds):
    """Compare at equal epochs: every peer trains for as many epochs as NARS."""
    peers = {"random search": random_search, "regularized evolution": regularized_evolution, "TPE": tpe}
    accuracies = {name: [] for name in ("NARS, best trial", "NARS, recommended", *peers)}
    budgets = []
    for seed in range(seeds):
        task = JointTask(seed)
        result = nars(task, rounds * batch, seed, batch)
        epochs = sum(trial.epochs for trial in result.trials)
        trainings = epochs // task.epochs
        budgets.append(epochs)
        recommended = result.recommendations[0].candidate.vector
        accuracies["NARS, best trial"].append(task.true_accuracy(result.best.candidate))
        accuracies["NARS, recommended"].append(task.true_accuracy(recommended))
        for name, peer in peers.items():
            accuracies[name].append(incumbents(task, peer(task, trainings, seed), seed)[-1])
        summary = ", ".join(f"{name} {values[-1]:.3f}" for name, values in accuracies.items())
        print(
            f"seed {seed}: {len(result.trials)} trials, {trainings} full trainings; {summary}",
            file=sys.stderr,
            flush=True,
        )
    nars_accuracies = np.array(accuracies["NARS, recommended"])
    rows = []
    for name, values in accuracies.items():
        wins = np.mean(nars_accuracies > np.array(values))
        rows.append([name, f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}", f"{wins:.0%}"])
    print(f"\n{seeds} tasks on Table 2's space; {np.mean(budgets):.0f} epochs for each side\n")
    headers = [
        "",
        "true accuracy of its choice",
        "deviation",
        "tasks on which NARS's recommendation is better",
    ]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument("--joint", action="store_true", help="the joint task with learning curves")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=20, help="trials per round")
    parser.add_argument(
        "--marks",
        type=int,
        nargs="+",
        default=[50, 100, 150, 200],
        help="numbers of training runs to compare at",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the joint task")
    args = parser.parse_args()
    if args.table:
        compare_on_table(args.table, args.seeds, args.batch, args.marks)
    if args.joint:
        compare_on_joint(args.seeds, args.batch, args.rounds)


if __name__ == "__main__":
    main()
