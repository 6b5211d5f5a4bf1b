#!/usr/bin/env python3
"""Time and memory of a search in Table 2's space without its trials: costs, pool, pretraining, evolution.

benchmarks/pool_cost.py
"""

import argparse
import resource
import time

import numpy as np
import torch
from evolution import BUDGETS
from fvcore.nn import FlopCountAnalysis

from fbnetv3.arch import compute_cost, configs_folder
from fbnetv3.modeling import build_network
from fbnetv3.nars import (
    AccuracyPredictor,
    Constraint,
    Constraints,
    CostModel,
    evolve,
    load_space,
    sample_pool,
)
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.sampling import sample_sobol

NUM_COMPARED = 300  # with the cost of the architecture
NUM_TRACED = 3  # by fvcore


def peak_memory():
    """Return the peak memory of the process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call):
    """Return the result of a call and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def trace_macs(space, vector):
    """Count a candidate's MACs by building and tracing its network."""
    arch = space.build_arch(vector, "traced")
    image = torch.zeros(1, 3, arch.resolution, arch.resolution)
    analysis = FlopCountAnalysis(build_network(arch).eval(), image)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def benchmark_costs(space, batch_size):
    """Print how many candidates per second are costed."""
    model = CostModel(space)
    model(sample_sobol(space, 2**14, seed=1))  # fill the tables, as the first batches of any search do
    rates = []
    for seed in range(2, 8):
        candidates = sample_sobol(space, batch_size, seed)
        costs, seconds = timed(lambda candidates=candidates: model(candidates))
        rates.append(len(candidates) / seconds)
    new_model = CostModel(space)
    _, seconds_with_empty_tables = timed(lambda: new_model(candidates))
    for i in range(NUM_COMPARED):
        cost = compute_cost(space.build_arch(candidates[i], "compared"))
        assert (cost.macs, cost.params) == (costs["macs"][i], costs["params"][i]), i
    print(
        f"costs: {np.median(rates):,.0f} candidates per second (from {min(rates):,.0f} to {max(rates):,.0f}; "
        f"{len(candidates) / seconds_with_empty_tables:,.0f} with empty tables); {NUM_COMPARED} of them equal to "
        "compute_cost"
    )
    _, seconds = timed(lambda: [trace_macs(space, vector) for vector in candidates[:NUM_TRACED]])
    fvcore_rate = NUM_TRACED / seconds
    ratio = np.median(rates) / fvcore_rate
    print(f"fvcore: {fvcore_rate:.2f} candidates per second; fbnetv3 is {ratio:,.0f} x as fast")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pool", type=int, default=20_000, help="candidates in the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--candidates", type=int, default=2**17, help="costed at a time (default: %(default)s)"
    )
    args = parser.parse_args()
    memory_before = peak_memory()
    space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
    threads = torch.get_num_threads()
    print(f"{threads} thread{'s' * (threads > 1)}; {memory_before:.0f} MB after imports")

    benchmark_costs(space, args.candidates)

    constraints = Constraints(space, [Constraint("macs", 400e6, 800e6)])
    pool, seconds = timed(lambda: sample_pool(constraints, args.pool))
    print(f"pool: {len(pool):,} candidates between 400 and 800 M MACs in {seconds:.2f} s")

    predictor = AccuracyPredictor(space)
    report, seconds = timed(lambda: predictor.pretrain(pool, pretraining_labels(constraints, pool)))
    r2 = ", ".join(f"{name} {value:.4f}" for name, value in zip(report.names, report.r2, strict=True))
    print(f"pretraining: {seconds:.1f} s; R2 on the held-out fifth: {r2}")

    trials = pool[:240]
    macs = constraints.column_values(trials, "macs")["macs"]
    accuracies = np.log(macs) + 0.1 * np.sin(trials @ np.arange(len(space)))
    _, seconds = timed(lambda: predictor.fit(trials, accuracies))
    print(f"training on {len(trials)} trials: {seconds:.1f} s")

    def evolve_all_budgets():
        for budget in BUDGETS:
            bounded = constraints.with_bounds(Constraint("macs", high=budget))
            evolve(predictor, bounded, trials[np.argsort(-accuracies)])

    _, seconds = timed(evolve_all_budgets)
    print(f"evolution: {len(BUDGETS)} budgets in {seconds:.1f} s altogether")
    print(f"memory: {peak_memory() - memory_before:.0f} MB at most, on top of imports")


if __name__ == "__main__":
    main()
