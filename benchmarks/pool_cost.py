#!/usr/bin/env python3
"""What the free part of a search takes on Table 2's space: costs, the pool, pretraining, evolution, memory.

benchmarks/pool_cost.py
"""

import argparse
import resource
import time

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis

from fbnetv3.arch import compute_cost, configs_folder
from fbnetv3.modeling import build_network
from fbnetv3.nars import AccuracyPredictor, Constraint, Constraints, CostModel, evolve, load_space, sample_pool
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.sampling import sample_sobol

CHECKED, BUILT = 300, 3
BUDGETS = (450e6, 550e6, 650e6, 750e6)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call):
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=20_000, help="candidates in it (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=2**17, help="costed at a time (default: %(default)s)")
    args = parser.parse_args()
    before = megabytes()
    space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
    print(f"{torch.get_num_threads()} threads; {before:.0f} MB when all is imported")

    model, rates = CostModel(space), []
    model(sample_sobol(space, 2**14, seed=1))  # fills the tables, as the first batches of any search do
    for seed in range(2, 8):
        candidates = sample_sobol(space, args.candidates, seed)
        found, seconds = timed(lambda candidates=candidates: model(candidates))
        rates.append(len(candidates) / seconds)
    fresh = CostModel(space)
    _, cold = timed(lambda: fresh(candidates))
    for i in range(CHECKED):
        cost = compute_cost(space.make_arch(candidates[i], "checked"))
        assert (cost.macs, cost.params) == (found["macs"][i], found["params"][i]), i
    print(
        f"costs: {np.median(rates):,.0f} candidates a second (from {min(rates):,.0f} to {max(rates):,.0f}; "
        f"{len(candidates) / cold:,.0f} with empty tables); {CHECKED} of them equal to compute_cost"
    )

    def fvcore(vector):
        arch = space.make_arch(vector, "built")
        network = build_network(arch).eval()
        image = torch.zeros(1, 3, arch.resolution, arch.resolution)
        return (
            FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        )

    _, seconds = timed(lambda: [fvcore(vector) for vector in candidates[:BUILT]])
    rate = BUILT / seconds
    print(f"fvcore: {rate:.2f} candidates a second; ours is {np.median(rates) / rate:,.0f} x as fast")

    constraints = Constraints(space, [Constraint("macs", 400e6, 800e6)])
    pool, seconds = timed(lambda: sample_pool(constraints, args.pool))
    print(f"pool: {len(pool):,} candidates between 400 and 800 M MACs in {seconds:.2f} s")

    predictor = AccuracyPredictor(space)
    report, seconds = timed(lambda: predictor.pretrain(pool, pretraining_labels(constraints, pool)))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in zip(report.names, report.r2, strict=True))
    print(f"pretraining: {seconds:.1f} s; R2 on the held-out fifth: {shown}")

    trials = pool[:240]
    accuracies = np.log(constraints.column_values(trials, "macs")["macs"]) + 0.1 * np.sin(
        trials @ np.arange(len(space))
    )
    _, seconds = timed(lambda: predictor.fit(trials, accuracies))
    print(f"training on {len(trials)} trials: {seconds:.1f} s")

    def all_budgets():
        for macs in BUDGETS:
            within = constraints.with_bounds(Constraint("macs", high=macs))
            evolve(predictor, within, trials[np.argsort(-accuracies)])

    _, seconds = timed(all_budgets)
    print(f"evolution: {len(BUDGETS)} budgets in {seconds:.1f} s altogether")
    print(f"memory: {megabytes() - before:.0f} MB at most, above what imports take")


if __name__ == "__main__":
    main()
