"""The evolution against the truth by enumeration, and against pymoo's genetic algorithm at as many predictor calls.

On a table of measured networks (NAS-Bench-Macro's JSON file, https://github.com/xiusu/NAS-Bench-Macro) every network
can be scored: the evolution should find the predictor's best inside a budget in 95 % of its runs. On Table 2's joint
space, with a predictor that is trained on made-up accuracies, it should be at least as good as pymoo in 90 %, and four
budgets should take less than 20 s together. Needs pymoo: pip install '.[benchmarks]'.

    benchmarks/evolution.py --table nas-bench-macro_cifar10.json
    benchmarks/evolution.py --seeds 20
"""

import argparse
import sys
import time

import numpy as np
from predictor_efficiency import Synthetic, Table
from tabulate import tabulate

from fbnetv3.nars.algorithm.evolution import evolve
from fbnetv3.nars.predictor.accuracy_predictor import Predictor
from fbnetv3.nars.space.constraints import Constraint, Constraints

BUDGETS = (450e6, 550e6, 650e6, 750e6)
SHARES = (0.2, 0.4, 0.6, 0.8)  # of the table's networks that are within a budget
GAIN = 1e-6  # what counts as a difference, as for the evolution's end


def against_enumeration(file, runs, trials=100):
    """How often the evolution finds the predictor's best among the table's networks that are within a budget."""
    table = Table(file, naswot=False)
    rows, hits, calls = [], 0, []
    predictors = []
    for seed in range(-(-runs // len(SHARES))):
        candidates, accuracies = table.draw(np.random.default_rng(seed))
        predictors.append(Predictor(table.space, seed=seed))
        predictors[-1].fit(candidates[:trials], accuracies[:trials])
    costs = table.constraints.values(table.candidates, "flops")["flops"]
    for share in SHARES:
        budget = float(np.quantile(costs, share))
        bounded = Constraints(table.space, [Constraint("flops", high=budget)], table.constraints.columns)
        within = table.candidates[costs <= budget]
        found = []
        for seed, predictor in enumerate(predictors):
            result = evolve(predictor, bounded, seed=seed)
            best = predictor(within).max()
            found.append(result.scores[0] >= best - 1e-5)
            calls.append(result.calls)
        hits += sum(found)
        rows.append([f"{budget / 1e6:.1f} M", len(within), len(found), sum(found)])
    total = len(SHARES) * len(predictors)
    print(f"\n{table.name}: the predictor's best inside a budget, by enumeration\n")
    print(tabulate(rows, ["budget, MACs", "networks within", "runs", "found"], tablefmt="github"))
    print(
        f"\nfound in {hits} of {total} runs ({hits / total:.1%}), {np.mean(calls):.0f} predictor calls each\n",
        flush=True,
    )


def pymoo_best(predictor, constraints, calls, seed, population=100):
    """The best score of pymoo's genetic algorithm inside constraints, at so many predictor calls; its own population.

    Only candidates that meet the constraints are scored, as ours are; others tell how far they are from it.
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
    spent, best = [0], [-np.inf]

    class Inside(Problem):
        def __init__(self):
            super().__init__(n_var=len(space), n_obj=1, n_ieq_constr=1, xl=0, xu=space.sizes - 1, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            candidates = x.astype(np.int64)
            violation = constraints.violation(candidates)
            scores = np.full(len(candidates), -1e9)
            met = np.flatnonzero(violation == 0)[: calls - spent[0]]
            if len(met):
                scores[met] = predictor(candidates[met])
                best[0] = max(best[0], scores[met].max())
            spent[0] += len(met)
            out["F"], out["G"] = -scores[:, None], violation[:, None]

    algorithm = GA(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(Inside(), termination=("n_gen", 100_000), seed=seed, verbose=False)
    stuck = 0
    while spent[0] < calls and stuck < 200 and algorithm.has_next():
        before = spent[0]
        algorithm.next()
        stuck = stuck + 1 if spent[0] == before else 0
    return best[0], spent[0]


def against_pymoo(seeds, trials=200):
    """Best scores of both at equal predictor calls, by seed; and the time that four budgets take."""
    task = Synthetic()
    predictor = Predictor(task.space)
    predictor.pretrain(task.pool, task.labels["MACs and parameters"])
    candidates, accuracies = task.draw(np.random.default_rng(0))
    predictor.fit(candidates[:trials], accuracies[:trials])
    inside = [task.constraints.with_bounds(Constraint("macs", high=budget)) for budget in BUDGETS]
    start = time.perf_counter()
    for constraints in inside:
        evolve(predictor, constraints)
    seconds = time.perf_counter() - start
    rows, differences = [], []
    for seed in range(seeds):
        constraints = inside[seed % len(BUDGETS)]
        start = time.perf_counter()
        ours = evolve(predictor, constraints, seed=seed)
        middle = time.perf_counter()
        theirs, spent = pymoo_best(predictor, constraints, ours.calls, seed)
        differences.append(ours.scores[0] - theirs)
        budget = f"{BUDGETS[seed % len(BUDGETS)] / 1e6:.0f} M"
        times = f"{middle - start:.1f}, {time.perf_counter() - middle:.1f}"
        rows.append([seed, budget, f"{ours.scores[0]:.4f}", f"{theirs:.4f}", ours.calls, spent, times])
        print(*rows[-1], file=sys.stderr, flush=True)
    differences = np.array(differences)
    print("\nTable 2, joint: the predictor's score of the best found\n")
    headers = ["seed", "budget", "ours", "pymoo", "our calls", "its calls", "seconds, ours and its"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print(
        f"\nours is at least as good in {np.mean(differences >= -GAIN):.0%} of {seeds} runs, better in "
        f"{int((differences > GAIN).sum())}; mean difference {differences.mean():.4f}, scores of {trials} trials have "
        f"a deviation of {accuracies[:trials].std():.2f}\nfour budgets evolved in {seconds:.1f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument("--runs", type=int, default=40, help="on the table")
    parser.add_argument("--seeds", type=int, default=0, help="against pymoo")
    args = parser.parse_args()
    if not args.table and not args.seeds:
        parser.error("nothing to do: --table FILE or --seeds N")
    if args.table:
        against_enumeration(args.table, args.runs)
    if args.seeds:
        against_pymoo(args.seeds)


if __name__ == "__main__":
    main()
