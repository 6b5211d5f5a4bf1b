"""The evolutionary search against enumeration, and against pymoo's genetic algorithm at equal predictor calls.

All networks of a table (NAS-Bench-Macro's JSON file, https://github.com/xiusu/NAS-Bench-Macro) can be scored: the
evolutionary search should find the predictor's best network within a budget in 95% of its runs. On Table 2's joint
space, with a predictor trained on synthetic accuracies, it should be at least as good as pymoo in 90% of the runs, and
four budgets should take less than 20 s together. Needs pymoo: pip install '.[benchmarks]'.

    benchmarks/evolution.py --table nas-bench-macro_cifar10.json
    benchmarks/evolution.py --seeds 20
"""

import argparse
import sys
import time

import numpy as np
from measure import report_value
from predictor_efficiency import Synthetic, Table
from tabulate import tabulate

from fbnetv3.nars.evolution.evolution import EvolutionSettings, evolve
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor
from fbnetv3.nars.space.constraints import Constraint, Constraints

BUDGETS = (450e6, 550e6, 650e6, 750e6)
SHARES_WITHIN = (0.2, 0.4, 0.6, 0.8)  # of the table's networks, one for each budget
# Trials on which the predictor is trained
TABLE_TRIALS = 100
SYNTHETIC_TRIALS = 200
PYMOO_POPULATION = 100


def compare_with_enumeration(file, num_runs):
    """Count how often the evolutionary search finds the predictor's best network of the table within a budget."""
    table = Table(file, naswot=False)
    predictors = []
    for seed in range(-(-num_runs // len(SHARES_WITHIN))):
        candidates, accuracies = table.draw(np.random.default_rng(seed))
        predictors.append(AccuracyPredictor(table.space, seed=seed))
        predictors[-1].fit(candidates[:TABLE_TRIALS], accuracies[:TABLE_TRIALS])
    costs = table.constraints.column_values(table.candidates, "flops")["flops"]
    rows = []
    calls = []
    num_hits = 0
    for share in SHARES_WITHIN:
        budget = float(np.quantile(costs, share))
        bounded = Constraints(table.space, [Constraint("flops", high=budget)], table.constraints.columns)
        within = table.candidates[costs <= budget]
        hits = 0
        for seed, predictor in enumerate(predictors):
            result = evolve(predictor, bounded, seed=seed)
            # Rounding depends on the batch, so equal candidates may differ in the score's last digits
            hits += result.scores[0] >= predictor(within).max() - 1e-5
            calls.append(result.num_scored)
        num_hits += hits
        rows.append([f"{budget / 1e6:.1f} M", len(within), len(predictors), hits])
    total = len(SHARES_WITHIN) * len(predictors)
    print(f"\n{table.name}: the predictor's best network within a budget, by enumeration\n")
    print(tabulate(rows, ["budget, MACs", "networks within", "runs", "found"], tablefmt="github"))
    print()
    details = f"{num_hits} of {total} runs, {np.mean(calls):.0f} predictor calls each"
    report_value("runs that find the best network", num_hits / total, 0.95, details)


def run_pymoo(predictor, constraints, max_calls, seed):
    """Run pymoo's genetic algorithm within constraints, and return its best score and number of predictor calls.

    As in this project's search, only feasible candidates are scored; the others have their constraint violation.
    """
    try:
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
    except ImportError:
        raise SystemExit("error: pymoo is missing: pip install '.[benchmarks]'") from None
    space = constraints.space

    class SearchProblem(Problem):
        best = -np.inf
        calls = 0

        def __init__(self):
            super().__init__(n_var=len(space), n_obj=1, n_ieq_constr=1, xl=0, xu=space.sizes - 1, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            candidates = x.astype(np.int64)
            violation = constraints.violation(candidates)
            scores = np.full(len(candidates), -1e9)
            feasible = np.flatnonzero(violation == 0)[: max_calls - self.calls]
            if len(feasible):
                scores[feasible] = predictor(candidates[feasible])
                self.best = max(self.best, scores[feasible].max())
            self.calls += len(feasible)
            out["F"] = -scores[:, None]
            out["G"] = violation[:, None]

    problem = SearchProblem()
    algorithm = GA(
        pop_size=PYMOO_POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", 100_000), seed=seed, verbose=False)
    generations_without_calls = 0
    while problem.calls < max_calls and generations_without_calls < 200 and algorithm.has_next():
        calls_before = problem.calls
        algorithm.next()
        generations_without_calls = generations_without_calls + 1 if problem.calls == calls_before else 0
    return problem.best, problem.calls


def compare_with_pymoo(num_seeds):
    """Print the best scores of both at equal predictor calls, and the time of four budgets."""
    task = Synthetic()
    predictor = AccuracyPredictor(task.space)
    predictor.pretrain(task.pool, task.labels["MACs and parameters"])
    candidates, accuracies = task.draw(np.random.default_rng(0))
    accuracies = accuracies[:SYNTHETIC_TRIALS]
    predictor.fit(candidates[:SYNTHETIC_TRIALS], accuracies)
    bounded = [task.constraints.with_bounds(Constraint("macs", high=budget)) for budget in BUDGETS]
    start = time.perf_counter()
    for constraints in bounded:
        evolve(predictor, constraints)
    seconds = time.perf_counter() - start
    rows = []
    differences = []
    for seed in range(num_seeds):
        constraints = bounded[seed % len(BUDGETS)]
        start = time.perf_counter()
        result = evolve(predictor, constraints, seed=seed)
        middle = time.perf_counter()
        pymoo_score, pymoo_calls = run_pymoo(predictor, constraints, result.num_scored, seed)
        end = time.perf_counter()
        differences.append(result.scores[0] - pymoo_score)
        budget = f"{BUDGETS[seed % len(BUDGETS)] / 1e6:.0f} M"
        times = f"{middle - start:.1f}, {end - middle:.1f}"
        scores = [f"{result.scores[0]:.4f}", f"{pymoo_score:.4f}"]
        rows.append([seed, budget, *scores, result.num_scored, pymoo_calls, times])
        print(*rows[-1], file=sys.stderr, flush=True)
    differences = np.array(differences)
    print("\nTable 2, joint: the best predicted score\n")
    headers = [
        "seed",
        "budget",
        "fbnetv3",
        "pymoo",
        "fbnetv3's calls",
        "pymoo's calls",
        "seconds, fbnetv3 and pymoo",
    ]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print(
        f"\nmean difference {differences.mean():.4f}; standard deviation of the accuracies of "
        f"{SYNTHETIC_TRIALS} trials {accuracies.std():.2f}"
    )
    epsilon = EvolutionSettings.epsilon
    details = f"of {num_seeds}; better in {int((differences > epsilon).sum())}"
    report_value("runs at least as good as pymoo", np.mean(differences >= -epsilon), 0.9, details)
    report_value("seconds to evolve four budgets", seconds, 20, lower_is_better=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument("--runs", type=int, default=40, help="runs on the table (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=0, help="runs compared with pymoo")
    args = parser.parse_args()
    if not args.table and not args.seeds:
        parser.error("nothing to do: --table FILE or --seeds N")
    if args.table:
        compare_with_enumeration(args.table, args.runs)
    if args.seeds:
        compare_with_pymoo(args.seeds)


if __name__ == "__main__":
    main()
